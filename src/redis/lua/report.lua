-- Writes a report. ARGV: 18 report, 19 user. Returns index updates, and 1 if the head has moved because the log entered another
-- epoch or was repaired.
local S = load(K[3])
local has_moved = apply_report(S, K[4], A[18], A[19])
local next_expiry, not_indexed = save(K[3], S, A[19])
return {next_expiry, not_indexed, has_moved and 1 or 0}
