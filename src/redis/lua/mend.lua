-- Repairs a log whose stream differs from its state. Causes: an operator or `maxmemory-policy` has deleted, trimmed or replaced
-- one of the two keys, or Redis has rejected a step half-way.

-- Adds gaps for sequences whose entries may be lost, where some cursor has not acknowledged them.
local function add_lost_gaps(S, from, to)
  local first = from
  for _, r in ipairs(ranges(acknowledged_by_all(S))) do
    if r[1] > from then add_gap(S, from, math.min(r[1] - 1, to), REASON_LOST) end
    from = math.max(from, r[2] + 1)
  end
  if from <= to then add_gap(S, from, to, REASON_LOST) end
  if first <= lowest_cursor(S) + 1 then acknowledge_for_all(S, 1, to) end
end

-- Counts the stream again where its number of entries differs from the state. That reads the stream completely, at most a
-- user's quota, and happens once for each such change.
local function mend(S, log)
  if redis.call('XLEN', log) == S.n then return end
  local missing, next_seq, is_stored, head = {}, S.trimmed + 1, {}, S.head
  for _, key in ipairs(S.keys) do is_stored[key[2]] = false end
  S.n, S.b, S.bl, S.exp = 0, 0, '', 0
  each_entry(log, 0, SEQ_MAX, function(seq, entry)
    local expires = tonumber(entry[2][8])
    if not entry[2][6] or not expires then error({err = 'DAMAGED an entry of ' .. log .. ' cannot be read'}) end
    if seq > next_seq then missing[#missing + 1] = {next_seq, seq - 1} end
    next_seq = seq + 1
    -- An entry above the head was appended without this state. It may have been delivered, so it counts.
    S.head = math.max(S.head, seq)
    count_appended(S, seq, bytes_of(entry), expires)
    if is_stored[seq] == false then is_stored[seq] = true end
  end)
  if next_seq <= head then missing[#missing + 1] = {next_seq, head} end
  for at = math.max(#missing - REASONS_MAX + 1, 1), #missing do add_lost_gaps(S, missing[at][1], missing[at][2]) end
  remove_keys(S, function(key) return not is_stored[key[2]] end)
  S.entered = NOW
  trim(S, log)
end
