-- Looks after what has become too old. 18 the user.
local S, new = load(K[3])
if new then
  if TOGETHER then redis.call('ZREM', K[2], A[18]) end
  return {-1, 0}
end
look(S)
if DEVICE_AGE > 0 then
  for _, d in ipairs(S.dv) do
    if is_attached(S, d[1]) and d[2].s < NOW - DEVICE_AGE / 2 then d[2].s = NOW end
  end
  local shared_is_here = is_attached(S, '')
  if S.sh and shared_is_here then S.sh.s = NOW end
  -- The last cursor stays, as the device it is: of several that are all that old, the one that was used last.
  local function is_away(name, c) return not is_attached(S, name) and c.s < NOW - DEVICE_AGE end
  local spared = S.sh
  local all_away = not S.sh or is_away('', S.sh)
  for _, d in ipairs(S.dv) do
    all_away = all_away and is_away(d[1], d[2])
    if not spared or d[2].s >= spared.s then spared = d[2] end
  end
  local kept = {}
  for _, d in ipairs(S.dv) do
    if not is_away(d[1], d[2]) or (all_away and d[2] == spared) then kept[#kept + 1] = d end
  end
  S.dv = kept
  if #kept > 0 and S.sh and not shared_is_here and S.sh.s < NOW - DEVICE_AGE then S.sh = nil end
end
drop_expired(S, K[4])
release(S, K[4])
S.due = TOGETHER and -1 or 0
save(K[3], S, A[18])
return {due(S), is_past(S.exp) and 1 or 0}
