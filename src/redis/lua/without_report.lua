-- Prefix of a read without a report. ARGV: 23 the name by which the caller's sessions know the log ('' = no sessions), 24 the
-- highest sequence that they have seen, 25 the last change that the caller has reported.
local S = load(K[3])
drop_stale_reports(S)
-- A log with another name has not got their holds. A log that went back, or whose stream differs, must be repaired first. Then
-- the caller reads with a report.
local function is_known_log()
  local is_current = A[23] == S.name and tonumber(A[24]) <= S.head and not is_older_copy(S, tonumber(A[25]))
  return is_current and redis.call('XLEN', K[4]) == S.n
end
if A[23] ~= '' and not is_known_log() then return 'report_required' end
local next_expiry, not_indexed = -1, 0
