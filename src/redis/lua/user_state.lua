-- Returns the state of a log, as replies.rs decodes it. The value before the gaps is 1 if expired entries were counted.
local function state_of(key, log)
  local S, new = load(key)
  drop_stale_reports(S)
  block_cache = {}
  local both = acknowledged_by_all(S)
  local n, b = pending(S, log, both)
  local ranges_flat = {}
  for _, r in ipairs(both.i) do
    ranges_flat[#ranges_flat + 1] = r[1]
    ranges_flat[#ranges_flat + 1] = r[2]
  end
  local devices = {}
  for _, d in ipairs(S.dv) do devices[#devices + 1] = {d[1], (pending(S, log, d[2])), math.floor(d[2].s), d[2].t} end
  local has_expired = is_expired(S.exp) and 1 or 0
  local gaps_flat = {}
  for _, gap in ipairs(S.gaps) do
    for at = 1, 3 do gaps_flat[#gaps_flat + 1] = gap[at] end
  end
  return {new and 0 or 1, S.head, both.t, ranges_flat, n, b, math.floor(S.seen), devices, has_expired, gaps_flat}
end

-- Returns the state of each log, or the reason why it is damaged.
local answer = {}
for n = 3, #K, 2 do
  local ok, found = pcall(state_of, K[n], K[n + 1])
  if not ok then
    if not is_damage(found) then error(type(found) == 'table' and found or {err = found}) end
    found = type(found) == 'table' and found.err or found
  end
  answer[#answer + 1] = found
end
return answer
