-- Clears a log. ARGV: 18 user. Returns how many entries were pending, and index updates.
local S, new = load(K[3])
if new then return {0, -1, 0} end
drop_stale_reports(S)
for _ = 1, 8 do drop_expired(S, K[4]) end
local cleared = pending(S, K[4], acknowledged_by_all(S))
local from = lowest_cursor(S) + 1
if from <= S.head then
  acknowledge_for_all(S, 1, S.head)
  add_gap(S, from, S.head, REASON_CLEARED)
end
trim(S, K[4], true)
return {cleared, save(K[3], S, A[18])}
