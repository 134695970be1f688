-- Repairs a log whose stream is not what its state says. An operator has deleted, trimmed or replaced one of the two keys, or
-- Redis has (`maxmemory-policy`), or it rejected a step half-way.

-- Adds a gap for sequences whose entries may be lost, where some cursor has not received them.
local function forget_lost(S, from, to)
  local first = from
  for _, r in ipairs(ranges(received_by_all(S))) do
    if r[1] > from then add_gap(S, from, math.min(r[1] - 1, to), LOST) end
    from = math.max(from, r[2] + 1)
  end
  if from <= to then add_gap(S, from, to, LOST) end
  if first <= lowest_cursor(S) + 1 then mark_received_by_all(S, 1, to) end
end

-- Counts the stream again where its number of entries differs from the state. That reads the whole stream, which is at most a
-- user's quota, and happens once for each such change.
local function mend(S, log)
  if redis.call('XLEN', log) == S.n then return end
  local holes, next_one, is_there, last_known = {}, S.rel + 1, {}, S.head
  for _, key in ipairs(S.keys) do is_there[key[2]] = false end
  S.n, S.b, S.bl, S.exp = 0, 0, '', 0
  each(log, 0, SEQ_MAX, function(seq, entry)
    local expires = tonumber(entry[2][8])
    if not entry[2][6] or not expires then error({err = 'DAMAGED an entry of ' .. log .. ' cannot be read'}) end
    if seq > next_one then holes[#holes + 1] = {next_one, seq - 1} end
    next_one = seq + 1
    -- Appended without this state. It may have been delivered, so it counts.
    S.head = math.max(S.head, seq)
    add(S, seq, bytes_of(entry), expires)
    if is_there[seq] == false then is_there[seq] = true end
  end)
  if next_one <= last_known then holes[#holes + 1] = {next_one, last_known} end
  for at = math.max(#holes - REASONS_MAX + 1, 1), #holes do forget_lost(S, holes[at][1], holes[at][2]) end
  forget_keys(S, function(key) return not is_there[key[2]] end)
  S.at = NOW
  trim(S, log)
end
