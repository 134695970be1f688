-- When somebody has to look at this log although nothing happens, in seconds; 0 = never.
local function due(S)
  local at = S.exp
  -- What waits for servers to report is trimmed then at the latest.
  if S.n > 0 and awaits(S) and through(S) > S.rel then
    at = earlier(at, math.floor((S.at + SAY_AGAIN) / 1000) + 1)
  end
  -- A device that is its user's only cursor is not forgotten: it is looked at only while it is here.
  local only = #S.dv == 1 and not S.sh and not is_attached(S, S.dv[1][1])
  if DEVICE_AGE > 0 and #S.dv > 0 and not only then
    local first
    local function consider(name, c)
      local when = c.s + (is_attached(S, name) and DEVICE_AGE / 2 or DEVICE_AGE)
      first = math.min(first or when, when)
    end
    for _, d in ipairs(S.dv) do consider(d[1], d[2]) end
    if S.sh then consider('', S.sh) end
    at = earlier(at, math.max(math.floor(first / 1000) + 1, NOW_S))
  end
  return at
end

-- Where keys are spread, the caller writes down that the user is known and when something is due, and says so (`listed`): until
-- then each step asks for it again. Nothing is asked for where it comes later than what is written down: who looks then finds out.
-- Gives when it is due, -1 = that is written down, and whether the user is to be.
local function owed(S, at)
  local is_earlier = at > 0 and ((S.due or 0) == 0 or at < S.due)
  return is_earlier and at or -1, S.listed and 0 or 1
end

local function save(key, S, user)
  local at = due(S)
  if TOGETHER then
    if not S.listed then redis.call('ZADD', K[1], 0, user) end
    if at ~= (S.due or 0) then
      if at > 0 then redis.call('ZADD', K[2], at, user) else redis.call('ZREM', K[2], user) end
    end
    S.listed, S.due = true, at
  end
  redis.call('SET', key, cmsgpack.pack(S))
  return owed(S, at)
end
