-- Reads entries. ARGV: 18 read above this sequence, 19 maximum of entries and 20 of bytes, 21 entries and 22 bytes that
-- earlier steps of this read have returned. Returns the sequence up to which it has scanned, the log's name, 1 if there may be
-- more for this read, index updates, and the entries: sequence, namespace, owner, payload.
local after, entries_max, bytes_max = tonumber(A[18]), tonumber(A[19]), tonumber(A[20])
local n, bytes = tonumber(A[21]), tonumber(A[22])
local answer = {math.max(S.head, after), S.name or '', 0, next_expiry, not_indexed}
local hold, acknowledged = lowest_hold(S), acknowledged_by_all(S)
local from, limit, scanned, read = math.max(after, S.trimmed) + 1, 4, 0, 0
while true do
  local found = redis.call('XRANGE', K[4], id(from), '+', 'COUNT', limit)
  for _, entry in ipairs(found) do
    local seq, size = seq_of(entry), bytes_of(entry)
    scanned, read = scanned + 1, read + size
    local is_wanted = (hold and seq > hold) or not all_have_acknowledged(S, seq)
    if is_wanted and not is_expired(tonumber(entry[2][8])) then
      bytes = bytes + size
      if n > 0 and (n >= entries_max or bytes > bytes_max) then
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
  for _, r in ipairs(ranges(acknowledged)) do
    local to = hold and math.min(r[2], hold) or r[2]
    if r[1] <= from and from <= to then from = to + 1 end
  end
  if scanned >= SCAN_ENTRIES_MAX or read >= SCAN_BYTES_MAX then
    answer[1], answer[3] = from - 1, 1
    return answer
  end
  -- As many as fit if they have the mean size of those before; at least one, to see whether it fits.
  local fitting = math.floor(math.max(bytes_max - bytes, 0) * scanned / read) + 1
  limit = math.max(math.min(fitting, entries_max - n + 1, limit * 2, 128), 1)
end
