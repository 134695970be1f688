-- ARGV: 18 sequence. Returns the devices that have not acknowledged it ('' = clients without a device).
local S, answer = load(K[3]), {}
if S.sh and not has_acknowledged(S.sh, tonumber(A[18])) then answer[1] = '' end
for _, d in ipairs(S.dv) do
  if not has_acknowledged(d[2], tonumber(A[18])) then answer[#answer + 1] = d[1] end
end
return answer
