-- Attaches a session. ARGV: 18 report, 19 device ('' = none), 20 user. Returns index updates, head, the log's name, and the
-- acknowledged sequences of the device's cursor; or 'too_many_devices'.
local S = load(K[3])
apply_report(S, K[4], A[18], A[20])
local device = A[19]
local c = cursor(S, device)
if not c then
  c = {t = lowest_cursor(S), i = {}, s = 0}
  if device == '' then
    S.sh = c
  else
    if #S.dv == 0 and S.sh and S.sh.s == 0 then
      c, S.sh = S.sh, nil
    end
    while #S.dv >= math.max(DEVICES_MAX, 1) do
      local oldest
      for n, d in ipairs(S.dv) do
        if not is_attached(S, d[1]) and (not oldest or d[2].s < S.dv[oldest][2].s) then oldest = n end
      end
      if not oldest then
        save(K[3], S, A[20])
        return 'too_many_devices'
      end
      table.remove(S.dv, oldest)
    end
    S.dv[#S.dv + 1] = {device, c}
  end
end
c.s = NOW
trim(S, K[4])
local next_expiry, not_indexed = save(K[3], S, A[20])
local answer = {next_expiry, not_indexed, S.head, S.name, c.t}
for _, r in ipairs(c.i) do
  answer[#answer + 1] = r[1]
  answer[#answer + 1] = r[2]
end
return answer
