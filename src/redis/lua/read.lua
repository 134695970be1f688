-- 18 above which sequence, 19 entries and 20 bytes at most, 21 and 22 how many of them there are already. Gives up to where it has
-- looked, the era, whether there may be more for this read, what is owed of lists, and the entries.
local after, most, room, n, bytes = tonumber(A[18]), tonumber(A[19]), tonumber(A[20]), tonumber(A[21]), tonumber(A[22])
local answer, held, everybodys = {math.max(S.head, after), S.era or '', 0, moved, unknown}, hold(S), common(S)
local from, some, looked, read = math.max(after, S.rel) + 1, 4, 0, 0
while true do
  local found = redis.call('XRANGE', K[4], id(from), '+', 'COUNT', some)
  for _, entry in ipairs(found) do
    local seq, size = seq_of(entry), bytes_of(entry)
    looked, read = looked + 1, read + size
    local shown = (held and seq > held) or not everybody_has(S, seq)
    if shown and not is_past(tonumber(entry[2][8])) then
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
  if #found < some then return answer end
  for _, r in ipairs(ranges(everybodys)) do
    local to = held and math.min(r[2], held) or r[2]
    if r[1] <= from and from <= to then from = to + 1 end
  end
  if looked >= LOOKED_MAX or read >= LOOKED_BYTES_MAX then
    answer[1], answer[3] = from - 1, 1
    return answer
  end
  -- As many as there is room for if they are as those before; one at least, to see whether it has room.
  local fitting = math.floor(math.max(room - bytes, 0) * looked / read) + 1
  some = math.max(math.min(fitting, most - n + 1, some * 2, 128), 1)
end
