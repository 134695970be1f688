-- 18 the view, 19 the user.
local S = load(K[3])
take_view(S, K[4], A[18])
return {save(K[3], S, A[19])}
