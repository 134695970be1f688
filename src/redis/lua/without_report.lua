-- A read without a report. 23 the name by which the sessions of the caller know the log ('' = there are none), 24 the highest
-- sequence that they have seen, 25 the last change that the caller has reported.
local S = load(K[3])
look(S)
-- A log that has another name does not know what they hold; one that went back, or whose stream is another, has to be mended first.
local function is_theirs()
  return A[23] == S.era and tonumber(A[24]) <= S.head and not knows_less(S, tonumber(A[25])) and redis.call('XLEN', K[4]) == S.n
end
if A[23] ~= '' and not is_theirs() then return 'apart' end
local moved, unknown = -1, 0
