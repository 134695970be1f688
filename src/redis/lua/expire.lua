-- Expires entries and devices. ARGV: 18 user. Returns the next expiry in seconds (-1 = no log, 0 = none), and 1 if entries
-- have expired that are not removed yet.
local S, new = load(K[3])
if new then
  if SINGLE_REDIS then redis.call('ZREM', K[2], A[18]) end
  return {-1, 0}
end
drop_stale_reports(S)
if DEVICE_AGE > 0 then
  for _, d in ipairs(S.dv) do
    if is_attached(S, d[1]) and d[2].s < NOW - DEVICE_AGE / 2 then d[2].s = NOW end
  end
  local is_shared_attached = is_attached(S, '')
  if S.sh and is_shared_attached then S.sh.s = NOW end
  -- The last cursor is never removed. If all are stale, the cursor that was used last stays.
  local function is_stale(name, c) return not is_attached(S, name) and c.s < NOW - DEVICE_AGE end
  local last_used = S.sh
  local all_stale = not S.sh or is_stale('', S.sh)
  for _, d in ipairs(S.dv) do
    all_stale = all_stale and is_stale(d[1], d[2])
    if not last_used or d[2].s >= last_used.s then last_used = d[2] end
  end
  local remaining = {}
  for _, d in ipairs(S.dv) do
    if not is_stale(d[1], d[2]) or (all_stale and d[2] == last_used) then remaining[#remaining + 1] = d end
  end
  S.dv = remaining
  if #remaining > 0 and S.sh and not is_shared_attached and S.sh.s < NOW - DEVICE_AGE then S.sh = nil end
end
drop_expired(S, K[4])
trim(S, K[4])
S.due = SINGLE_REDIS and -1 or 0
save(K[3], S, A[18])
return {due(S), is_expired(S.exp) and 1 or 0}
