-- ARGV: 18 report, 19 user. Returns index updates, and whether the head has moved because the log entered another epoch or
-- was repaired.
local S = load(K[3])
local has_entered = apply_report(S, K[4], A[18], A[19])
local moved, unknown = save(K[3], S, A[19])
return {moved, unknown, has_entered and 1 or 0}
