-- 18 the view, 19 the user. Gives what is owed of lists, and whether the head has moved, because the log has come into
-- another epoch or was mended.
local S = load(K[3])
local has_entered = take_view(S, K[4], A[18], A[19])
local moved, unknown = save(K[3], S, A[19])
return {moved, unknown, has_entered and 1 or 0}
