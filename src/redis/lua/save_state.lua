-- Returns when the next expiry step of the log is due, in seconds; 0 = never.
local function due(S)
  local at = S.exp
  -- Entries that wait for reports of servers (`awaits_reports`) are trimmed then at the latest.
  if S.n > 0 and awaits_reports(S) and lowest_cursor(S) > S.trimmed then
    at = earlier(at, math.floor((S.entered + REPORT_TIMEOUT_MS) / 1000) + 1)
  end
  -- A device that is its user's only cursor is never removed. It only needs expiry steps while it is attached.
  local only = #S.dv == 1 and not S.sh and not is_attached(S, S.dv[1][1])
  if DEVICE_AGE > 0 and #S.dv > 0 and not only then
    local first
    local function consider(name, c)
      local when = c.s + (is_attached(S, name) and DEVICE_AGE / 2 or DEVICE_AGE)
      first = math.min(first or when, when)
    end
    for _, d in ipairs(S.dv) do consider(d[1], d[2]) end
    if S.sh then consider('', S.sh) end
    at = earlier(at, math.max(math.floor(first / 1000) + 1, NOW_SECONDS))
  end
  return at
end

-- Returns index updates: the next expiry in seconds (-1 = it is in the expiry index), and 1 if the user is not in the user
-- index. In a Redis Cluster the caller writes the indexes, and then confirms that (mark_indexed.lua). Until then each step
-- returns them. A later expiry is not written: the expiry step at the earlier time finds it.
local function index_updates(S, at)
  local is_earlier = at > 0 and ((S.due or 0) == 0 or at < S.due)
  return is_earlier and at or -1, S.indexed and 0 or 1
end

-- Saves the state. Returns index updates.
local function save(key, S, user)
  local at = due(S)
  if SINGLE_REDIS then
    if not S.indexed then redis.call('ZADD', K[1], 0, user) end
    if at ~= (S.due or 0) then
      if at > 0 then redis.call('ZADD', K[2], at, user) else redis.call('ZREM', K[2], user) end
    end
    S.indexed, S.due = true, at
  end
  redis.call('SET', key, cmsgpack.pack(S))
  return index_updates(S, at)
end
