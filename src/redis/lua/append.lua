-- Appends an entry, and gives its sequence.
local function put(S, log, ...)
  local seq = S.head + 1
  local added = redis.pcall('XADD', log, id(seq), ...)
  if type(added) == 'table' then
    if not string.find(added.err, 'equal or smaller', 1, true) then error(added) end
    -- The state is older than the stream, whose entries above it were deleted.
    local about = redis.call('XINFO', 'STREAM', log)
    for at = 1, #about, 2 do
      if about[at] == 'last-generated-id' then S.head = tonumber(string.match(about[at + 1], '^%d+')) end
    end
    forget_lost(S, seq, S.head)
    seq = S.head + 1
    redis.call('XADD', log, id(seq), ...)
  end
  S.head = seq
  return seq
end

-- One more entry; its sequence (0 = no room, -1 = what is there cannot be continued), and how many others went for it.
local function keep(S, log, user, payload, ttl, key)
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
  local dropped = 0
  if not replaced and not fits(S, #payload) then dropped = make_room(S, log, #payload) end
  if not replaced and not fits(S, #payload) then return 0, dropped end
  if replaced then
    lose(S, log, replaced, COLLAPSED)
    release(S, log)
  end
  local seq = put(S, log, 'n', A[13], 'u', user, 'p', payload, 'e', int(expires))
  add(S, seq, #payload, expires)
  if key ~= '' then
    forget_keys(S, function(known) return known[1] == key end)
    if #S.keys >= KEYS_MAX then table.remove(S.keys, 1) end
    S.keys[#S.keys + 1] = {key, seq, expires}
  end
  return seq, dropped
end

-- 18 how many messages; each: payload, time to live in ms (0 = none), key, id ('' = none), for how many ms that is known (0 = as
-- ids of dispatches are); then each item: message, user, the view ('' = nothing is to be said). Answers for each item: the sequence
-- (0 = no room, -1 = what is there of this user cannot be read), how many were dropped, and what is owed of lists; at the end how
-- many steps have appended in this epoch (0 in a Cluster).
local at, messages = 19, {}
for n = 1, tonumber(A[18]) do
  messages[n] = {A[at], tonumber(A[at + 1]), A[at + 2], A[at + 3], tonumber(A[at + 4])}
  at = at + 5
end
-- Each log is opened once and saved at the end, however many copies are for it.
local answer, woken, open, opened, damaged = {}, {}, {}, {}, {}

-- Appends one item. Gives its sequence, and how many entries were dropped.
local function append(n, message, user, view)
  local state, log, done = K[n * 3], K[n * 3 + 1], K[n * 3 + 2]
  local once = message[4]
  local window = message[5] > 0 and message[5] or WINDOW
  local before = once ~= '' and redis.call('GET', done)
  before = before and cmsgpack.unpack(before)
  local is_done = before and before.at + window > NOW
  local S = open[state]
  if not S then
    S = load(state)
    if not (is_done and view == '') then
      look(S)
      if view ~= '' then
        take_view(S, log, view, user)
      else
        enter(S, log, user)
        release(S, log)
      end
      open[state] = S
      opened[#opened + 1] = {state, user, n}
    end
  end
  if is_done then return before.seq, 0 end
  local seq, dropped = keep(S, log, user, message[1], message[2], message[3])
  if seq > 0 and woken[#woken] ~= user then woken[#woken + 1] = user end
  -- Who had no room may have some when it is asked for again.
  if once ~= '' and seq > 0 then
    redis.call('SET', done, cmsgpack.pack({at = NOW, seq = seq}), 'PX', int(window))
  end
  return seq, dropped
end

-- Runs a part of the step for one user. Damage to what is stored of that user fails that part alone. Lua itself fails where what
-- is stored does not have the form that it was written in.
local function guarded(part, ...)
  local whole, first, second = pcall(part, ...)
  if whole then return first, second end
  if not is_damage(first) and not (type(first) == 'string' and string.find(first, '^user_script:')) then
    error(type(first) == 'table' and first or {err = first})
  end
  return nil
end

local states = {}
for n = 1, (#A - at + 1) / 3 do
  local state = K[n * 3]
  states[n] = state
  local seq, dropped
  if not damaged[state] then seq, dropped = guarded(append, n, messages[tonumber(A[at])], A[at + 1], A[at + 2]) end
  if not seq then damaged[state] = true end
  answer[#answer + 1] = seq or -1
  answer[#answer + 1] = dropped or 0
  answer[#answer + 1] = -1
  answer[#answer + 1] = 0
  at = at + 3
end
for _, one in ipairs(opened) do
  local state, user, n = one[1], one[2], one[3]
  local due, unknown
  if not damaged[state] then due, unknown = guarded(save, state, open[state], user) end
  if due then answer[n * 4 - 1], answer[n * 4] = due, unknown else damaged[state] = true end
end
-- A state that was not saved knows of none of its entries.
for n, state in ipairs(states) do
  if damaged[state] then answer[n * 4 - 3], answer[n * 4 - 2] = -1, 0 end
end
if #woken > 0 then redis.call('PUBLISH', A[14], NODE .. '\0' .. table.concat(woken, '\0')) end
answer[#answer + 1] = TOGETHER and redis.call('HINCRBY', A[17], 'steps', 1) or 0
return answer
