-- Applies a server's report on a user. The log enters the current epoch first. Returns true if that has moved its head.
--
-- The report is JSON: `changes` number of its last change, `flushed` number of the last change that was stored, `hold` (-1 =
-- none), `devices` attached ones, `seen` when the user was seen (ms, 0 = never), `detached` devices, each with how long ago
-- (ms), `acknowledged` ranges: device, from, to. `log_name` is the name by which its sessions know the log ('' = no sessions),
-- `top` the highest sequence that they have seen.
local function apply_report(S, log, text, user)
  local report, head = cjson.decode(text), S.head
  enter_epoch(S, log, user)
  reconcile(S, log, report.log_name, report.top, report.flushed)
  local known = S.reports[SERVER]
  local is_newer = not known or known.changes < report.changes
  if is_newer then
    S.reports[SERVER] = {changes = report.changes, hold = report.hold, devices = report.devices, log_name = S.name}
  end
  if report.seen > S.seen then S.seen = report.seen end
  for _, detached in ipairs(report.detached) do
    local c = cursor(S, detached[1])
    if c and is_newer then c.s = math.max(c.s, NOW - detached[2]) end
  end
  for _, acknowledged in ipairs(report.acknowledged) do
    local c = cursor(S, acknowledged[1])
    -- A repeated report may be about a cursor that was created again since.
    if c and is_newer then acknowledge(c, acknowledged[2], math.min(acknowledged[3], S.head)) end
  end
  drop_stale_reports(S)
  trim(S, log)
  return S.head ~= head
end
