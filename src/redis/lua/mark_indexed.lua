-- Confirms in a Redis Cluster that the indexes were written. ARGV: 18 user, 19 next expiry (-1 = unchanged), 20 '1' = exactly
-- then, else then or earlier. Returns index updates since.
local S, new = load(K[3])
if new then return {-1, 0} end
local at = tonumber(A[19])
S.indexed = true
if at >= 0 then S.due = A[20] == '1' and at or earlier(S.due or 0, at) end
return {save(K[3], S, A[18])}
