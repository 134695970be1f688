-- Prefix of a read with a report. ARGV: 23 report, 24 user.
local S = load(K[3])
apply_report(S, K[4], A[23], A[24])
local next_expiry, not_indexed = save(K[3], S, A[24])
