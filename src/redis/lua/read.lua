-- ARGV: 18 read above this sequence, 19 maximum of entries and 20 of bytes, 21 entries and 22 bytes that earlier steps
-- returned. Returns up to where it has scanned, the log's name, whether there may be more for this read, index updates, and
-- the entries.
local after, most, room, n, bytes = tonumber(A[18]), tonumber(A[19]), tonumber(A[20]), tonumber(A[21]), tonumber(A[22])
local answer, held, received = {math.max(S.head, after), S.era or '', 0, moved, unknown}, lowest_hold(S), received_by_all(S)
local from, limit, looked, read = math.max(after, S.rel) + 1, 4, 0, 0
while true do
  local found = redis.call('XRANGE', K[4], id(from), '+', 'COUNT', limit)
  for _, entry in ipairs(found) do
    local seq, size = seq_of(entry), bytes_of(entry)
    looked, read = looked + 1, read + size
    local shown = (held and seq > held) or not all_have(S, seq)
    if shown and not is_expired(tonumber(entry[2][8])) then
      bytes = bytes + size
      if n > 0 and (n >= most or bytes > room) then
        answer[1] = seq - 1
        return answer
      end
      n = n + 1
      answer[#answer + 1] = seq
      answer[#answer + 1] = tonumber(entry[2][2])
      answer[#answer + 1] = entry[2][4]
      answer[#answer + 1] = entry[2][6]
    end
    from = seq + 1
  end
  if #found < limit then return answer end
  for _, r in ipairs(ranges(received)) do
    local to = held and math.min(r[2], held) or r[2]
    if r[1] <= from and from <= to then from = to + 1 end
  end
  if looked >= SCAN_ENTRIES_MAX or read >= SCAN_BYTES_MAX then
    answer[1], answer[3] = from - 1, 1
    return answer
  end
  -- As many as fit if they are like those before; at least one, to see whether it fits.
  local fitting = math.floor(math.max(room - bytes, 0) * looked / read) + 1
  limit = math.max(math.min(fitting, most - n + 1, limit * 2, 128), 1)
end
