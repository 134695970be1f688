-- Prefix of a read without a report. ARGV: 23 the name by which the caller's sessions know the log ('' = no sessions), 24 the
-- highest sequence that they have seen, 25 the last change that the caller has reported.
local S = load(K[3])
drop_stale_reports(S)
-- A log with another name does not know their holds. One that went back, or whose stream differs, must be repaired first.
local function is_theirs()
  return A[23] == S.era and tonumber(A[24]) <= S.head and not knows_less(S, tonumber(A[25])) and redis.call('XLEN', K[4]) == S.n
end
if A[23] ~= '' and not is_theirs() then return 'apart' end
local moved, unknown = -1, 0
