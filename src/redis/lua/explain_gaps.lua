-- ARGV: 18 device. Returns up to where its cursor has received entries or they are trimmed, and the gaps.
local S = load(K[3])
local c = cursor(S, A[18])
local answer = {math.max(c and c.t or 0, S.rel)}
for _, r in ipairs(S.gone) do
  answer[#answer + 1] = r[1]
  answer[#answer + 1] = r[2]
  answer[#answer + 1] = r[3]
end
return answer
