-- 18 the user: where keys are spread, he is written down, and 19 when something is due (-1 = as before), 20 whether exactly then or
-- then at the latest. Gives what is owed since.
local S, new = load(K[3])
if new then return {-1, 0} end
local at = tonumber(A[19])
S.listed = true
if at >= 0 then S.due = A[20] == '1' and at or earlier(S.due or 0, at) end
return {save(K[3], S, A[18])}
