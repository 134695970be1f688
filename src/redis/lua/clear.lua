-- 18 the user: what he has goes, counted.
local S, new = load(K[3])
if new then return {0, -1, 0} end
look(S)
for _ = 1, 8 do drop_expired(S, K[4]) end
local cleared = waiting(S, K[4], common(S))
local from = through(S) + 1
if from <= S.head then
  everybody_receives(S, 1, S.head)
  gone(S, from, S.head, CLEARED)
end
release(S, K[4], true)
return {cleared, save(K[3], S, A[18])}
