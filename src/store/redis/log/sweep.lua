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
  local kept = {}
  for _, d in ipairs(S.dv) do
    if is_attached(S, d[1]) or d[2].s >= NOW - DEVICE_AGE then kept[#kept + 1] = d else S.last = d[2] end
  end
  -- Never the last one: from then on that is the one clients without a device share.
  if #kept == 0 and not S.sh and S.last then
    S.sh = S.last
    S.sh.s = 0
  end
  S.last, S.dv = nil, kept
  if #kept > 0 and S.sh and not shared_is_here and S.sh.s < NOW - DEVICE_AGE then S.sh = nil end
end
drop_expired(S, K[4])
release(S, K[4])
S.due = TOGETHER and -1 or 0
save(K[3], S, A[18])
return {due(S), is_past(S.exp) and 1 or 0}
