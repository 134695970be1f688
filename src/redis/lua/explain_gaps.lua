-- Explains gaps. ARGV: 18 device. Returns the sequence up to which its cursor has acknowledged entries or they are trimmed,
-- and all gaps: from, to, reason.
local S = load(K[3])
local c = cursor(S, A[18])
local answer = {math.max(c and c.t or 0, S.trimmed)}
for _, r in ipairs(S.gaps) do
  answer[#answer + 1] = r[1]
  answer[#answer + 1] = r[2]
  answer[#answer + 1] = r[3]
end
return answer
