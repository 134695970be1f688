-- One step on the logs of users: the whole of it, or nothing. What each step may do is said in the store's contract
-- (src/store/mod.rs); this is the same as src/store/{cursors,gone,log,room}.rs, where Redis keeps the log.
--
-- A log is two keys of one slot: the state (packed: head, cursors, gaps, tallies) and a stream with an entry for each
-- message that is still there, whose id is its sequence.
--
-- ARGV: 1 the step, 2 this node, 3 nodes that live (a,b,c), 4 when those were asked for (ms), 5 milliseconds by which the
-- clock is ahead (tests), 6 messages and 7 bytes of one user, 8 age in ms (0 = none), 9 overflow (drop or reject),
-- 10 device age in ms (0 = none), 11 devices, 12 window of ids in ms, 13 fingerprint of the namespace,
-- 14 the channel for wake-ups, 15 what this Redis was born as, as far as the caller knows, 16 where keys are spread, where logs
-- begin that it does not have, 17 the key of its era, or where keys are spread the histories of the shards there were at the beginning; what
-- belongs to the step begins at 18.
-- KEYS: 1 who is known, 2 when something is due; the step's from 3. Where keys are spread over slots the first three are the
-- same, and the caller writes down who is known and what is due, from the answers.

local A, K = ARGV, KEYS
local NODE, ASKED, TOGETHER = A[2], tonumber(A[4]), K[1] ~= K[3]
local MESSAGES, BYTES, AGE, DROP = tonumber(A[6]), tonumber(A[7]), tonumber(A[8]), A[9] == 'drop'
local DEVICE_AGE, DEVICES, WINDOW = tonumber(A[10]), tonumber(A[11]), tonumber(A[12])
local ISLANDS_MAX, REASONS_MAX, KEYS_MAX = 16, 64, 64

-- What one step reads of a log, but for what it gives back: then it ends, and the next goes on.
local LOOKED_MAX, LOOKED_BYTES_MAX = 1024, 1024 * 1024
local QUOTA, COLLAPSED, CLEARED, LOST = 1, 3, 2, 5

-- A log that may have given out more than it knows of goes on so far behind its head, at least.
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
  fresh.dv, fresh.gone, fresh.keys, fresh.views, fresh.bl = {}, {}, {}, {}, ''
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

-- Entries.

local function bytes_of(entry) return #entry[2][6] end
local function seq_of(entry) return tonumber(string.match(entry[1], '^%d+')) end

-- Calls `visit` with sequence and entry for each from..to that is there.
local function each(log, from, to, visit)
  while true do
    local found = redis.call('XRANGE', log, id(from), id(to), 'COUNT', 128)
    for _, entry in ipairs(found) do
      local seq = seq_of(entry)
      if visit(seq, entry) == false then return end
      from = seq + 1
    end
    if #found < 128 then return end
  end
end

local function delete(log, ids)
  for at = 1, #ids, 500 do redis.call('XDEL', log, unpack(ids, at, math.min(at + 499, #ids))) end
end

-- Blocks: of some entries that follow each other, how many there are, their bytes, and when the first of them expires or
-- something earlier (0 = never). An entry cannot be measured without being read whole, so this is what tells how much there
-- is; at the ends of a range a block is read, which is no more than so many entries, or bytes and one entry.
-- A record: first sequence (or less), entries, bytes, seconds.
local BLOCK_MAX, BLOCK_BYTES_MAX = 512, 256 * 1024
local RECORD, RECORD_BYTES = '<dI2dI4', 22

-- What is said of later seconds than this is this, which is earlier: cut off they would be long past.
local SECONDS_MAX = 4294967295

local function blocks(S) return #S.bl / RECORD_BYTES end
local function block(S, k) return struct.unpack(RECORD, S.bl, (k - 1) * RECORD_BYTES + 1) end
local function last_of(S, k) return k < blocks(S) and block(S, k + 1) - 1 or S.head end

local function put_block(S, k, first, n, b, expires)
  local record = n > 0 and struct.pack(RECORD, first, n, b, math.min(expires, SECONDS_MAX)) or ''
  S.bl = string.sub(S.bl, 1, (k - 1) * RECORD_BYTES) .. record .. string.sub(S.bl, k * RECORD_BYTES + 1)
end

-- Where a sequence is or would be; 0 = before the first.
local function block_of(S, seq)
  local low, high = 0, blocks(S)
  while low < high do
    local middle = math.ceil((low + high) / 2)
    if block(S, middle) <= seq then low = middle else high = middle - 1 end
  end
  return low
end

-- The last entry of all has come.
local function add(S, seq, bytes, expires)
  S.n, S.b, S.exp = S.n + 1, S.b + bytes, earlier(S.exp, expires)
  local k = blocks(S)
  if k > 0 then
    local first, n, b, before = block(S, k)
    if n < BLOCK_MAX and b < BLOCK_BYTES_MAX then
      return put_block(S, k, first, n + 1, b + bytes, earlier(before, expires))
    end
  end
  put_block(S, k + 1, seq, 1, bytes, expires)
end

-- Sequences and sizes of a block's entries; remembered where `read_blocks` is there, for steps that change nothing.
local read_blocks
local function sizes(S, log, k, first)
  local known = read_blocks and read_blocks[k]
  if known then return known end
  known = {}
  each(log, first, last_of(S, k), function(seq, entry) known[#known + 1] = {seq, bytes_of(entry)} end)
  if read_blocks then read_blocks[k] = known end
  return known
end

-- How many entries from..to there are, and their bytes.
local function count(S, log, from, to)
  local n, b = 0, 0
  if from > to then return n, b end
  for k = math.max(block_of(S, from), 1), blocks(S) do
    local first, all, bytes = block(S, k)
    if first > to then break end
    if from <= first and last_of(S, k) <= to then
      n, b = n + all, b + bytes
    else
      for _, one in ipairs(sizes(S, log, k, first)) do
        if one[1] >= from and one[1] <= to then n, b = n + 1, b + one[2] end
      end
    end
  end
  return n, b
end

-- All entries up to `to` go.
local function cut(S, log, to)
  local k = 1
  while k <= blocks(S) and last_of(S, k) <= to do
    local _, n, b = block(S, k)
    S.n, S.b, k = S.n - n, S.b - b, k + 1
  end
  S.bl = string.sub(S.bl, (k - 1) * RECORD_BYTES + 1)
  if S.bl ~= '' and block(S, 1) <= to then
    local first, n, b, expires = block(S, 1)
    each(log, first, to, function(_, entry)
      n, b, S.n, S.b = n - 1, b - bytes_of(entry), S.n - 1, S.b - bytes_of(entry)
    end)
    put_block(S, 1, to + 1, n, b, expires)
  end
  if S.n == 0 then
    redis.call('DEL', log)
    S.exp = 0
  else
    redis.call('XTRIM', log, 'MINID', id(to + 1))
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
  if S.n > 0 then cut(S, log, low) end
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

local function lose(S, log, seq, loss)
  each(log, seq, seq, function(_, entry)
    local k = block_of(S, seq)
    local first, n, b, expires = block(S, k)
    put_block(S, k, first, n - 1, b - bytes_of(entry), expires)
    S.n, S.b = S.n - 1, S.b - bytes_of(entry)
    redis.call('XDEL', log, id(seq))
  end)
  forget_keys(S, function(key) return key[2] == seq end)
  gone(S, seq, seq, loss)
  if seq <= through(S) + 1 then everybody_receives(S, 1, seq) end
end

-- Some of what is past goes; where there is more, S.exp is past still.
local function drop_expired(S, log)
  if not is_past(S.exp) then return end
  local ids, past, looked, read, next_one, k = {}, {}, 0, 0, 0, 1
  while k <= blocks(S) do
    local first, n, b, expires = block(S, k)
    if is_past(expires) and looked < LOOKED_MAX and read < LOOKED_BYTES_MAX then
      expires = 0
      each(log, first, last_of(S, k), function(seq, entry)
        local at, bytes = tonumber(entry[2][8]), bytes_of(entry)
        looked, read = looked + 1, read + bytes
        if is_past(at) then
          ids[#ids + 1] = id(seq)
          past[id(seq)] = true
          n, b, S.n, S.b = n - 1, b - bytes, S.n - 1, S.b - bytes
        else
          expires = earlier(expires, at)
        end
      end)
      put_block(S, k, first, n, b, expires)
    end
    if n > 0 then
      next_one, k = earlier(next_one, expires), k + 1
    end
  end
  if S.n == 0 then redis.call('DEL', log) else delete(log, ids) end
  S.exp = next_one
  forget_keys(S, function(key) return past[id(key[2])] end)
end

local function fits(S, bytes) return S.n < MESSAGES and S.b + bytes <= BYTES end

-- How many entries are not in `c`, and their bytes; what is past and has not gone yet among them.
local function waiting(S, log, c)
  local n, b = S.n, S.b
  for _, r in ipairs(ranges(c)) do
    local had, bytes = count(S, log, r[1], math.min(r[2], S.head))
    n, b = n - had, b - bytes
  end
  return n, b
end

-- Up to where entries have to go for a message of so many bytes.
local function room_through(S, log, bytes)
  local n, b, to = S.n, S.b, nil
  local function is_enough(some, theirs) return n - some < MESSAGES and b - theirs + bytes <= BYTES end
  for k = 1, blocks(S) do
    local first, all, theirs = block(S, k)
    if is_enough(all, theirs) then
      each(log, first, last_of(S, k), function(seq, entry)
        n, b, to = n - 1, b - bytes_of(entry), seq
        return not is_enough(0, 0)
      end)
      return to
    end
    n, b = n - all, b - theirs
  end
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  return last and seq_of(last)
end

-- Makes room where that can be done; how many entries somebody had not received went for it.
local function make_room(S, log, bytes)
  for _ = 1, 8 do
    if fits(S, bytes) then return 0 end
    drop_expired(S, log)
  end
  if not DROP or fits(S, bytes) then return 0 end
  local to = room_through(S, log, bytes)
  if not to then return 0 end
  local dropped = count(S, log, 1, to)
  for _, r in ipairs(ranges(common(S))) do dropped = dropped - count(S, log, r[1], math.min(r[2], to)) end
  local first = seq_of(redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1])
  local from = math.min(first, through(S) + 1)
  cut(S, log, to)
  forget_keys(S, function(key) return key[2] <= to end)
  gone(S, from, to, QUOTA)
  everybody_receives(S, 1, to)
  release(S, log)
  return dropped
end

-- The era in which this is, and where logs begin that this Redis does not have; nothing where the caller has to look first what
-- it is now. Where another has looked since the caller did, what that has found counts.
local function find_era()
  local info = redis.call('INFO', 'replication')
  local history = string.match(info, 'master_replid:(%x+)')
  -- Each shard has a history of its own, of which nobody keeps a table.
  if not TOGETHER then return string.sub(history, 1, 16), tonumber(A[16]) end
  local here = redis.call('HMGET', A[17], 'birth', 'history', 'era', 'base')
  return here[1] == A[15] and here[2] == history and here[3], tonumber(here[4] or 0)
end

-- A log that comes into another era may have given out more than it knows of: it goes on beyond that, and says so.
local function enter(S, log, era, base)
  if S.era == era then return end
  local from, to = S.head + 1, nil
  if S.era then
    -- There may have been an era between, of which what it gave this log was taken away again: that began so far behind the same head.
    to = math.max(S.head + BEYOND, base)
  elseif S.head == 0 then
    to = base
  end
  -- Shards have no such mark; and one that was none at the beginning may have had this log, and have come back without it.
  if not TOGETHER and to and (S.era or not string.find(A[17], era, 1, true)) then to = math.max(to, math.floor(NOW)) end
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
-- user cannot be read), how many were dropped, and what is owed of lists.
local function append()
  local era, base = find_era()
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
    local whole, S = pcall(load, state)
    if before and before.at + window > NOW or not whole then
      answer[#answer + 1] = whole and before.seq or -1
      answer[#answer + 1] = 0
      answer[#answer + 1] = -1
      answer[#answer + 1] = 0
    else
      look(S)
      enter(S, log, era, base)
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
          lose(S, log, replaced, COLLAPSED)
          release(S, log)
        end
        redis.call('XADD', log, id(seq), 'n', A[13], 'u', user, 'p', payload, 'e', int(expires))
        add(S, seq, #payload, expires)
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
      local moved, unknown = save(state, S, user)
      answer[#answer + 1] = seq
      answer[#answer + 1] = dropped
      answer[#answer + 1] = moved
      answer[#answer + 1] = unknown
    end
  end
  if #woken > 0 then redis.call('PUBLISH', A[14], NODE .. '\0' .. table.concat(woken, '\0')) end
  return answer
end

local function note()
  local S = load(K[3])
  take_view(S, K[4])
  return {save(K[3], S, A[#A])}
end

-- The view, then the device ('' = the cursor that clients without one share), then the user.
local function attach()
  local era, base = find_era()
  if not era then return 'era' end
  local S = load(K[3])
  enter(S, K[4], era, base)
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
          save(K[3], S, A[#A])
          return 'devices'
        end
        table.remove(S.dv, oldest)
      end
      S.dv[#S.dv + 1] = {device, c}
    end
  end
  c.s = NOW
  release(S, K[4])
  local moved, unknown = save(K[3], S, A[#A])
  local answer = {moved, unknown, S.head, S.era, c.t}
  for _, r in ipairs(c.i) do
    answer[#answer + 1] = r[1]
    answer[#answer + 1] = r[2]
  end
  return answer
end

-- 18 the user: what he has goes, counted.
local function clear()
  local S, new = load(K[3])
  if new then return {0, -1, 0} end
  look(S)
  for _ = 1, 8 do drop_expired(S, K[4]) end
  local cleared = waiting(S, K[4], common(S))
  local from = through(S) + 1
  if from <= S.head then
    everybody_receives(S, 1, S.head)
    gone(S, from, S.head, CLEARED)
  end
  release(S, K[4])
  return {cleared, save(K[3], S, A[18])}
end

-- 18 above which sequence, 19 entries and 20 bytes at most, 21 and 22 how many of them there are already. Gives up to where it has
-- looked, the era, whether there may be more for this read, and the entries.
local function read()
  local S = load(K[3])
  look(S)
  local after, most, room, n, bytes = tonumber(A[18]), tonumber(A[19]), tonumber(A[20]), tonumber(A[21]), tonumber(A[22])
  local answer, held, everybodys = {math.max(S.head, after), S.era or '', 0}, hold(S), common(S)
  local from, some, looked, read = math.max(after, S.rel) + 1, 4, 0, 0
  while true do
    local found = redis.call('XRANGE', K[4], id(from), '+', 'COUNT', some)
    for _, entry in ipairs(found) do
      local seq, size = seq_of(entry), bytes_of(entry)
      looked, read = looked + 1, read + size
      local shown = (held and seq > held) or not everybody_has(S, seq)
      if shown and not is_past(tonumber(entry[2][8])) then
        bytes = bytes + size
        if n > 0 and (n >= most or bytes > room) then
          answer[1] = seq - 1
          return answer
        end
        n = n + 1
        answer[#answer + 1] = seq
        answer[#answer + 1] = tonumber(entry[2][2])
        answer[#answer + 1] = entry[2][4]
        answer[#answer + 1] = entry[2][6]
      end
      from = seq + 1
    end
    if #found < some then return answer end
    for _, r in ipairs(ranges(everybodys)) do
      local to = held and math.min(r[2], held) or r[2]
      if r[1] <= from and from <= to then from = to + 1 end
    end
    if looked >= LOOKED_MAX or read >= LOOKED_BYTES_MAX then
      answer[1], answer[3] = from - 1, 1
      return answer
    end
    -- As many as there is room for if they are as those before; one at least, to see whether it has room.
    local fitting = math.floor(math.max(room - bytes, 0) * looked / read) + 1
    some = math.max(math.min(fitting, most - n + 1, some * 2, 128), 1)
  end
end

local function state()
  local S, new = load(K[3])
  look(S)
  read_blocks = {}
  local both = common(S)
  local n, b = waiting(S, K[4], both)
  local islands = {}
  for _, r in ipairs(both.i) do
    islands[#islands + 1] = r[1]
    islands[#islands + 1] = r[2]
  end
  local devices = {}
  for _, d in ipairs(S.dv) do devices[#devices + 1] = {d[1], (waiting(S, K[4], d[2])), math.floor(d[2].s)} end
  -- The last: what is past is among what was counted.
  local is_late = is_past(S.exp) and 1 or 0
  return {new and 0 or 1, S.head, both.t, islands, n, b, math.floor(S.seen), devices, is_late}
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
    return {-1, 0}
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
  S.due = TOGETHER and -1 or 0
  save(K[3], S, A[18])
  return {due(S), is_past(S.exp) and 1 or 0}
end

-- 18 the user: where keys are spread, he is written down, and 19 when something is due (-1 = as before), 20 whether exactly then or
-- then at the latest. Gives what is owed since.
local function listed()
  local S, new = load(K[3])
  if new then return {-1, 0} end
  local at = tonumber(A[19])
  S.listed = true
  if at >= 0 then S.due = A[20] == '1' and at or earlier(S.due or 0, at) end
  return {save(K[3], S, A[18])}
end

local steps = {append = append, note = note, attach = attach, clear = clear, read = read, state = state,
  missed = missed, lacking = lacking, sweep = sweep, listed = listed}

-- Steps that have to be taken where there is no room too, or nobody could make any. A script whose first write takes no
-- room (this one does nothing) is not refused the others.
local though_full = {note = true, attach = true, clear = true, sweep = true, listed = true}
if though_full[A[1]] then redis.call('PERSIST', K[3]) end
return steps[A[1]]()
