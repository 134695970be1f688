-- One step on the logs of users: the whole of it, or nothing. What each step may do is said in the store's contract
-- (src/store/mod.rs); this is the same as src/store/{cursors,gone,log,room}.rs, where Redis keeps the log.
--
-- A log is two keys of one slot: the state (packed: head, cursors, gaps, tallies) and a stream with an entry for each
-- message that is still there, whose id is its sequence.
--
-- ARGV: 1 the step, 2 this node, 3 nodes that live (a,b,c), 4 when those were asked for (ms), 5 milliseconds by which the
-- clock is ahead (tests), 6 messages and 7 bytes of one user, 8 age in ms (0 = none), 9 overflow (drop or reject),
-- 10 device age in ms (0 = none), 11 devices, 12 window of ids in ms, 13 fingerprint of the namespace,
-- 14 the channel for wake-ups, 15 what this Redis was born as, as far as the caller knows, 16 where logs begin that it does
-- not have, 17 the key of its era, or where keys are spread the histories of the shards there were at the beginning; what
-- belongs to the step begins at 18.
-- KEYS: 1 who is known, 2 when something is due; the step's from 3. Where keys are spread over slots the first three are the
-- same, and the caller writes down who is known and what is due, from the answers.

local A, K = ARGV, KEYS
local NODE, ASKED, TOGETHER = A[2], tonumber(A[4]), K[1] ~= K[3]
local MESSAGES, BYTES, AGE, DROP = tonumber(A[6]), tonumber(A[7]), tonumber(A[8]), A[9] == 'drop'
local DEVICE_AGE, DEVICES, WINDOW = tonumber(A[10]), tonumber(A[11]), tonumber(A[12])
local ISLANDS_MAX, REASONS_MAX, KEYS_MAX = 16, 64, 64
local QUOTA, COLLAPSED, CLEARED, LOST = 1, 3, 2, 5

-- A log that may have given out more than it knows of goes on so far behind its head.
local BEYOND = 1000000

-- How long servers have to say again who is here, in ms.
local SAY_AGAIN = 15000

local LIVE = {}
for node in string.gmatch(A[3], '[^,]+') do LIVE[node] = true end
LIVE[NODE] = true

local time = redis.call('TIME')
local NOW = time[1] * 1000 + time[2] / 1000 + tonumber(A[5])
local NOW_S = math.floor(NOW / 1000)

local function int(n) return string.format('%.0f', n) end
local function id(seq) return int(seq) .. '-0' end
local function is_past(at) return at > 0 and at <= NOW_S end
local function earlier(a, b)
  if a == 0 then return b elseif b == 0 then return a else return math.min(a, b) end
end

-- What somebody has received: all up to t, and islands i beyond it.

local function has(c, seq)
  if seq <= c.t then return true end
  for _, r in ipairs(c.i) do
    if seq >= r[1] and seq <= r[2] then return true end
  end
  return false
end

local function insert(c, from, to)
  if from < 1 then from = 1 end
  if from > to or to <= c.t then return end
  local kept = {}
  for _, r in ipairs(c.i) do
    if r[1] <= to + 1 and from <= r[2] + 1 then
      from, to = math.min(from, r[1]), math.max(to, r[2])
    else
      kept[#kept + 1] = r
    end
  end
  if from <= c.t + 1 then
    c.t = to
  else
    local at = 1
    while kept[at] and kept[at][1] < from do at = at + 1 end
    table.insert(kept, at, {from, to})
    if #kept > ISLANDS_MAX then table.remove(kept, 1) end
  end
  c.i = kept
end

local function ranges(c)
  local all = {{1, c.t}}
  for _, r in ipairs(c.i) do all[#all + 1] = r end
  return all
end

-- The state of a log.

local function load(key)
  local packed = redis.call('GET', key)
  if packed then
    local S = cmsgpack.unpack(packed)
    if type(S) ~= 'table' or not S.head then error({err = 'ERR what is stored under ' .. key .. ' cannot be read'}) end
    return S, false
  end
  local fresh = {head = 0, rel = 0, n = 0, b = 0, seen = 0, exp = 0, sh = {t = 0, i = {}, s = 0}}
  fresh.dv, fresh.gone, fresh.keys, fresh.views = {}, {}, {}, {}
  return fresh, true
end

local function cursors(S)
  local all = {}
  if S.sh then all[1] = S.sh end
  for _, d in ipairs(S.dv) do all[#all + 1] = d[2] end
  return all
end

local function through(S)
  local low
  for _, c in ipairs(cursors(S)) do low = math.min(low or c.t, c.t) end
  return low
end

local function everybody_has(S, seq)
  for _, c in ipairs(cursors(S)) do
    if not has(c, seq) then return false end
  end
  return true
end

local function everybody_receives(S, from, to)
  for _, c in ipairs(cursors(S)) do insert(c, from, to) end
end

local function common(S)
  local both
  for _, c in ipairs(cursors(S)) do
    if not both then
      both = {t = c.t, i = c.i}
    else
      local left, right = ranges(both), ranges(c)
      both = {t = 0, i = {}}
      for _, l in ipairs(left) do
        for _, r in ipairs(right) do insert(both, math.max(l[1], r[1]), math.min(l[2], r[2])) end
      end
    end
  end
  return both
end

local function cursor(S, device)
  if device == '' then return S.sh end
  for _, d in ipairs(S.dv) do
    if d[1] == device then return d[2] end
  end
end

-- What the sessions of each node hold. Of a node that has begun before the list of those that live was asked for, and
-- is not on it, nobody is here any more; nor of one that has not said it again in time since this log has come into
-- another era, before which it may have said otherwise.

local function look(S)
  local since = S.at and NOW > S.at + SAY_AGAIN
  for node, view in pairs(S.views) do
    local is_dead = not LIVE[node] and tonumber(string.match(node, '^%d+')) <= ASKED
    if is_dead or since and view.e ~= S.era then S.views[node] = nil end
  end
end

local function hold(S)
  local low
  for _, view in pairs(S.views) do
    if view.h >= 0 then low = math.min(low or view.h, view.h) end
  end
  return low
end

local function is_attached(S, device)
  for _, view in pairs(S.views) do
    for _, name in ipairs(view.d) do
      if name == device then return true end
    end
  end
  return false
end

-- When somebody has to look at this log although nothing happens, in seconds; 0 = never.
local function due(S)
  local at = S.exp
  if DEVICE_AGE > 0 and #S.dv > 0 then
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

local function save(key, S, user, new)
  local at = due(S)
  local moved = at ~= (S.due or 0)
  S.due = at
  redis.call('SET', key, cmsgpack.pack(S))
  if new and TOGETHER then redis.call('ZADD', K[1], 0, user) end
  if moved and TOGETHER then
    if at > 0 then redis.call('ZADD', K[2], at, user) else redis.call('ZREM', K[2], user) end
  end
  return moved and at or -1
end

-- Entries.

local function bytes_of(entry) return #entry[2][6] end
local function seq_of(entry) return tonumber(string.match(entry[1], '^%d+')) end

-- Calls `visit` with sequence and entry for each from..to that is there.
local function each(log, from, to, visit)
  local last = to and id(to) or '+'
  while true do
    local found = redis.call('XRANGE', log, id(from), last, 'COUNT', 128)
    for _, entry in ipairs(found) do
      local seq = seq_of(entry)
      if visit(seq, entry) == false then return end
      from = seq + 1
    end
    if #found < 128 then return end
  end
end

local function forget_keys(S, gone)
  local kept = {}
  for _, key in ipairs(S.keys) do
    if not gone(key) then kept[#kept + 1] = key end
  end
  S.keys = kept
end

local function release(S, log)
  local low = through(S)
  local held = hold(S)
  if held then low = math.min(low, held) end
  if low <= S.rel then return end
  if S.n > 0 then
    each(log, S.rel + 1, low, function(_, entry)
      S.n, S.b = S.n - 1, S.b - bytes_of(entry)
    end)
    if S.n == 0 then
      redis.call('DEL', log)
      S.exp = 0
    else
      redis.call('XTRIM', log, 'MINID', id(low + 1))
    end
  end
  S.rel = low
  forget_keys(S, function(key) return key[2] <= low end)
end

-- What was gone before stays gone for the reason it had.
local function gone(S, from, to, loss)
  local out = {}
  local function put(a, b, why)
    if a > b then return end
    local last = out[#out]
    if last and last[3] == why and last[2] + 1 == a then last[2] = b else out[#out + 1] = {a, b, why} end
  end
  for _, r in ipairs(S.gone) do
    if from < r[1] then put(from, math.min(to, r[1] - 1), loss) end
    put(r[1], r[2], r[3])
    if from <= r[2] then from = r[2] + 1 end
  end
  put(from, to, loss)
  while #out > REASONS_MAX do table.remove(out, 1) end
  S.gone = out
end

local function lose(S, log, from, to, loss)
  local ids = {}
  each(log, from, to, function(seq, entry)
    ids[#ids + 1] = id(seq)
    S.n, S.b = S.n - 1, S.b - bytes_of(entry)
  end)
  for _, one in ipairs(ids) do redis.call('XDEL', log, one) end
  forget_keys(S, function(key) return key[2] >= from and key[2] <= to end)
  gone(S, from, to, loss)
  if from <= through(S) + 1 then everybody_receives(S, 1, to) end
end

local function drop_expired(S, log)
  if not is_past(S.exp) then return end
  local past, next_one = {}, 0
  each(log, S.rel + 1, nil, function(seq, entry)
    local at = tonumber(entry[2][8])
    if is_past(at) then
      past[id(seq)] = true
      S.n, S.b = S.n - 1, S.b - bytes_of(entry)
    else
      next_one = earlier(next_one, at)
    end
  end)
  for one in pairs(past) do redis.call('XDEL', log, one) end
  S.exp = next_one
  forget_keys(S, function(key) return past[id(key[2])] end)
end

local function fits(S, bytes) return S.n < MESSAGES and S.b + bytes <= BYTES end

-- Makes room where that can be done; how many entries somebody had not received went for it.
local function make_room(S, log, bytes)
  drop_expired(S, log)
  local dropped = 0
  while DROP and not fits(S, bytes) do
    local oldest = redis.call('XRANGE', log, id(S.rel + 1), '+', 'COUNT', 1)[1]
    if not oldest then break end
    local seq = seq_of(oldest)
    if not everybody_has(S, seq) then dropped = dropped + 1 end
    lose(S, log, math.min(seq, through(S) + 1), seq, QUOTA)
    release(S, log)
  end
  return dropped
end

-- How many entries are not in `c`, which is no less than what everybody has; and their bytes.
local function waiting(S, log, c)
  if #c.i == 0 and c.t <= S.rel and not is_past(S.exp) then return S.n, S.b end
  local n, b = 0, 0
  each(log, math.max(c.t, S.rel) + 1, nil, function(seq, entry)
    if not has(c, seq) and not is_past(tonumber(entry[2][8])) then n, b = n + 1, b + bytes_of(entry) end
  end)
  return n, b
end

-- The era in which this is; nothing where the caller has to look first what this Redis is now.
local function find_era()
  local info = redis.call('INFO', 'replication')
  local history = string.match(info, 'master_replid:(%x+)')
  -- Each shard has a history of its own, of which nobody keeps a table.
  if not TOGETHER then return string.sub(history, 1, 16) end
  local here = redis.call('HMGET', A[17], 'birth', 'history', 'era')
  return here[1] == A[15] and here[2] == history and here[3]
end

-- A log that comes into another era may have given out more than it knows of: it goes on beyond that, and says so.
local function enter(S, log, era)
  if S.era == era then return end
  local from, to = S.head + 1, nil
  if S.era then
    to = S.head + BEYOND
  elseif S.head == 0 then
    to = tonumber(A[16])
    -- A shard that was none at the beginning may have had this log, and have come back without it.
    if not TOGETHER and not string.find(A[17], era, 1, true) then to = math.max(to, math.floor(NOW)) end
  end
  if S.era then S.at = NOW end
  S.era = era
  if not to or to < from then return end
  S.head = to
  gone(S, from, to, LOST)
  everybody_receives(S, from, to)
  release(S, log)
end

-- The steps.

-- 18 this node's count of changes, 19 what it holds (-1 = nothing), 20 how many devices are here, their names; then
-- when the user was seen (ms, 0 = not), how many devices have left, each with how long ago (ms); how many ranges, each device, from, to.
local function take_view(S, log)
  local at = 18
  local function take() at = at + 1 return A[at - 1] end
  local n, held, devices = tonumber(take()), tonumber(take()), {}
  for _ = 1, tonumber(take()) do devices[#devices + 1] = take() end
  local known = S.views[NODE]
  local newer = not known or known.n < n
  if newer then S.views[NODE] = {n = n, h = held, d = devices, e = S.era} end
  local seen = tonumber(take())
  if seen > S.seen then S.seen = seen end
  for _ = 1, tonumber(take()) do
    local c, ago = cursor(S, take()), tonumber(take())
    if c and newer then c.s = math.max(c.s, NOW - ago) end
  end
  for _ = 1, tonumber(take()) do
    local device, from, to = take(), tonumber(take()), tonumber(take())
    local c = cursor(S, device)
    -- What is said a second time may be about a cursor that has begun anew since.
    if c and newer then insert(c, from, math.min(to, S.head)) end
  end
  look(S)
  release(S, log)
  return at
end

-- Each message: payload, time to live in ms (0 = none), key, id ('' = none), for how many ms that is known (0 = as ids of
-- dispatches are); then each item: message, user. Answers for each item: the sequence (0 = no room, -1 = what is there of this
-- user cannot be read), how many were dropped, when it is due, whether the user is new.
local function append()
  local era = find_era()
  if not era then return 'era' end
  local at, messages = 19, {}
  for n = 1, tonumber(A[18]) do
    messages[n] = {A[at], tonumber(A[at + 1]), A[at + 2], A[at + 3], tonumber(A[at + 4])}
    at = at + 5
  end
  local answer, woken, dues = {}, {}, {}
  for n = 1, (#A - at + 1) / 2 do
    local message, user = messages[tonumber(A[at])], A[at + 1]
    local state, log, done = K[n * 3], K[n * 3 + 1], K[n * 3 + 2]
    at = at + 2
    local payload, ttl, key, once = message[1], message[2], message[3], message[4]
    local window = message[5] > 0 and message[5] or WINDOW
    local before = once ~= '' and redis.call('GET', done)
    before = before and cmsgpack.unpack(before)
    -- What is wrong with one user does not concern the others.
    local whole, S, new = pcall(load, state)
    if before and before.at + window > NOW or not whole then
      answer[#answer + 1] = whole and before.seq or -1
      answer[#answer + 1] = 0
      answer[#answer + 1] = -1
      answer[#answer + 1] = 0
    else
      look(S)
      enter(S, log, era)
      release(S, log)
      local lives = ttl
      if AGE > 0 then lives = lives > 0 and math.min(lives, AGE) or AGE end
      -- Rounded up: nothing goes before its time.
      local expires = lives > 0 and math.max(math.floor((NOW + 999 + lives) / 1000), 1) or 0
      local replaced
      if key ~= '' then
        for _, known in ipairs(S.keys) do
          if known[1] == key and not is_past(known[3]) and not everybody_has(S, known[2]) then replaced = known[2] end
        end
      end
      local dropped, seq = 0, 0
      if not replaced and not fits(S, #payload) then dropped = make_room(S, log, #payload) end
      if replaced or fits(S, #payload) then
        S.head = S.head + 1
        seq = S.head
        if replaced then
          lose(S, log, replaced, replaced, COLLAPSED)
          release(S, log)
        end
        redis.call('XADD', log, id(seq), 'n', A[13], 'u', user, 'p', payload, 'e', int(expires))
        S.n, S.b, S.exp = S.n + 1, S.b + #payload, earlier(S.exp, expires)
        if key ~= '' then
          forget_keys(S, function(known) return known[1] == key end)
          if #S.keys >= KEYS_MAX then table.remove(S.keys, 1) end
          S.keys[#S.keys + 1] = {key, seq, expires}
        end
        woken[#woken + 1] = user
      end
      -- Who had no room may have some when it is asked for again.
      if once ~= '' and seq > 0 then
        redis.call('SET', done, cmsgpack.pack({at = NOW, seq = seq}), 'PX', int(window))
      end
      local moved = save(state, S, user, new)
      answer[#answer + 1] = seq
      answer[#answer + 1] = dropped
      answer[#answer + 1] = moved
      answer[#answer + 1] = new and 1 or 0
    end
  end
  if #woken > 0 then redis.call('PUBLISH', A[14], NODE .. '\0' .. table.concat(woken, '\0')) end
  return answer
end

local function note()
  local S, new = load(K[3])
  take_view(S, K[4])
  return {save(K[3], S, A[#A], new), new and 1 or 0}
end

-- The view, then the device ('' = the cursor that clients without one share), then the user.
local function attach()
  local era = find_era()
  if not era then return 'era' end
  local S, new = load(K[3])
  enter(S, K[4], era)
  local at = take_view(S, K[4])
  local device = A[at]
  local c = cursor(S, device)
  if not c then
    c = {t = through(S), i = {}, s = 0}
    if device == '' then
      S.sh = c
    else
      if #S.dv == 0 and S.sh and S.sh.s == 0 then
        c, S.sh = S.sh, nil
      end
      while #S.dv >= math.max(DEVICES, 1) do
        local oldest
        for n, d in ipairs(S.dv) do
          if not is_attached(S, d[1]) and (not oldest or d[2].s < S.dv[oldest][2].s) then oldest = n end
        end
        if not oldest then
          save(K[3], S, A[#A], new)
          return 'devices'
        end
        table.remove(S.dv, oldest)
      end
      S.dv[#S.dv + 1] = {device, c}
    end
  end
  c.s = NOW
  release(S, K[4])
  local moved = save(K[3], S, A[#A], new)
  local answer = {moved, new and 1 or 0, S.head, S.era, c.t}
  for _, r in ipairs(c.i) do
    answer[#answer + 1] = r[1]
    answer[#answer + 1] = r[2]
  end
  return answer
end

-- 18 the user: what he has goes, counted.
local function clear()
  local S, new = load(K[3])
  if new then return {0, -1} end
  look(S)
  local cleared = waiting(S, K[4], common(S))
  local from = through(S) + 1
  if from <= S.head then
    everybody_receives(S, 1, S.head)
    gone(S, from, S.head, CLEARED)
  end
  release(S, K[4])
  return {cleared, save(K[3], S, A[18], new)}
end

-- 18 above which sequence, 19 entries and 20 bytes at most.
local function read()
  local S = load(K[3])
  look(S)
  local after, most, room = tonumber(A[18]), tonumber(A[19]), tonumber(A[20])
  local answer, held, n, bytes = {math.max(S.head, after), S.era or ''}, hold(S), 0, 0
  each(K[4], math.max(after, S.rel) + 1, nil, function(seq, entry)
    local shown = (held and seq > held) or not everybody_has(S, seq)
    if not shown or is_past(tonumber(entry[2][8])) then return end
    bytes = bytes + bytes_of(entry)
    if n > 0 and (n >= most or bytes > room) then
      answer[1] = seq - 1
      return false
    end
    n = n + 1
    answer[#answer + 1] = seq
    answer[#answer + 1] = tonumber(entry[2][2])
    answer[#answer + 1] = entry[2][4]
    answer[#answer + 1] = entry[2][6]
  end)
  return answer
end

local function state()
  local S, new = load(K[3])
  look(S)
  local both = common(S)
  local n, b = waiting(S, K[4], both)
  local islands = {}
  for _, r in ipairs(both.i) do
    islands[#islands + 1] = r[1]
    islands[#islands + 1] = r[2]
  end
  local devices = {}
  for _, d in ipairs(S.dv) do devices[#devices + 1] = {d[1], (waiting(S, K[4], d[2])), math.floor(d[2].s)} end
  return {new and 0 or 1, S.head, both.t, islands, n, b, math.floor(S.seen), devices}
end

-- 18 whose cursor.
local function missed()
  local S = load(K[3])
  local c = cursor(S, A[18])
  local answer = {math.max(c and c.t or 0, S.rel)}
  for _, r in ipairs(S.gone) do
    answer[#answer + 1] = r[1]
    answer[#answer + 1] = r[2]
    answer[#answer + 1] = r[3]
  end
  return answer
end

-- 18 a sequence: who has not received it.
local function lacking()
  local S, answer = load(K[3]), {}
  if S.sh and not has(S.sh, tonumber(A[18])) then answer[1] = '' end
  for _, d in ipairs(S.dv) do
    if not has(d[2], tonumber(A[18])) then answer[#answer + 1] = d[1] end
  end
  return answer
end

-- Looks after what has become too old. 18 the user.
local function sweep()
  local S, new = load(K[3])
  if new then
    if TOGETHER then redis.call('ZREM', K[2], A[18]) end
    return {-1}
  end
  look(S)
  if DEVICE_AGE > 0 then
    for _, d in ipairs(S.dv) do
      if is_attached(S, d[1]) and d[2].s < NOW - DEVICE_AGE / 2 then d[2].s = NOW end
    end
    local shared_is_here = is_attached(S, '')
    if S.sh and shared_is_here then S.sh.s = NOW end
    local kept = {}
    for _, d in ipairs(S.dv) do
      if is_attached(S, d[1]) or d[2].s >= NOW - DEVICE_AGE then kept[#kept + 1] = d else S.last = d[2] end
    end
    -- Never the last one: from then on that is the one clients without a device share.
    if #kept == 0 and not S.sh and S.last then
      S.sh = S.last
      S.sh.s = 0
    end
    S.last, S.dv = nil, kept
    if #kept > 0 and S.sh and not shared_is_here and S.sh.s < NOW - DEVICE_AGE then S.sh = nil end
  end
  drop_expired(S, K[4])
  release(S, K[4])
  S.due = -1
  return {save(K[3], S, A[18], false)}
end

local steps = {append = append, note = note, attach = attach, clear = clear, read = read, state = state,
  missed = missed, lacking = lacking, sweep = sweep}

-- Steps that have to be taken where there is no room too, or nobody could make any. A script whose first write takes no
-- room (this one does nothing) is not refused the others.
local though_full = {note = true, attach = true, clear = true, sweep = true}
if though_full[A[1]] then redis.call('PERSIST', K[3]) end
return steps[A[1]]()
