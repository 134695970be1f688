-- Adds an entry to the stream and returns its sequence.
local function add_to_stream(S, log, ...)
  local seq = S.head + 1
  local added = redis.pcall('XADD', log, id(seq), ...)
  if type(added) == 'table' then
    if not string.find(added.err, 'equal or smaller', 1, true) then error(added) end
    -- The state is older than the stream, whose later entries were deleted.
    local info = redis.call('XINFO', 'STREAM', log)
    for at = 1, #info, 2 do
      if info[at] == 'last-generated-id' then S.head = tonumber(string.match(info[at + 1], '^%d+')) end
    end
    add_lost_gaps(S, seq, S.head)
    seq = S.head + 1
    redis.call('XADD', log, id(seq), ...)
  end
  S.head = seq
  return seq
end

-- Appends one entry within the quota. Returns its sequence (0 = above the quota), and how many pending entries were evicted
-- for it.
local function append_entry(S, log, user, payload, ttl, key)
  local lifetime = ttl
  if AGE_MAX > 0 then lifetime = lifetime > 0 and math.min(lifetime, AGE_MAX) or AGE_MAX end
  -- Rounded up: nothing expires early.
  local expires = lifetime > 0 and math.max(math.floor((NOW + 999 + lifetime) / 1000), 1) or 0
  local replaced
  if key ~= '' then
    for _, known in ipairs(S.keys) do
      if known[1] == key and not is_expired(known[3]) and not all_have_acknowledged(S, known[2]) then replaced = known[2] end
    end
  end
  local dropped = 0
  if not replaced and not fits(S, #payload) then dropped = evict(S, log, #payload) end
  if not replaced and not fits(S, #payload) then return 0, dropped end
  if replaced then
    remove_entry(S, log, replaced, REASON_COLLAPSED)
    trim(S, log)
  end
  local seq = add_to_stream(S, log, 'n', A[13], 'u', user, 'p', payload, 'e', int(expires))
  count_appended(S, seq, #payload, expires)
  if key ~= '' then
    remove_keys(S, function(known) return known[1] == key end)
    if #S.keys >= KEYS_MAX then table.remove(S.keys, 1) end
    S.keys[#S.keys + 1] = {key, seq, expires}
  end
  return seq, dropped
end

-- ARGV: 18 number of messages; each: payload, TTL in ms (0 = none), collapse key, id ('' = none), ms for which the id is
-- stored (0 = the window of dispatch ids); then each item: message, user, report ('' = none). KEYS from 3, for each item:
-- state, stream, result of the dispatch for this user.
--
-- Returns for each item: sequence (0 = above the quota, -1 = the user's log is damaged), entries evicted, and index updates
-- (`index_updates`); at the end the append steps in this epoch (0 in a Redis Cluster).
local at, messages = 19, {}
for n = 1, tonumber(A[18]) do
  messages[n] = {A[at], tonumber(A[at + 1]), A[at + 2], A[at + 3], tonumber(A[at + 4])}
  at = at + 5
end
-- Each log is loaded once and saved at the end, however many entries it gets.
local answer, notified, states, loaded, damaged = {}, {}, {}, {}, {}

-- Appends one item. Returns its sequence, and how many entries were evicted.
local function append(n, message, user, report)
  local state, log, dedup_entry = K[n * 3], K[n * 3 + 1], K[n * 3 + 2]
  local dispatch_id = message[4]
  local window = message[5] > 0 and message[5] or DEDUP_WINDOW
  local first = dispatch_id ~= '' and redis.call('GET', dedup_entry)
  first = first and cmsgpack.unpack(first)
  local is_duplicate = first and first.at + window > NOW
  local S = states[state]
  if not S then
    S = load(state)
    if not (is_duplicate and report == '') then
      drop_stale_reports(S)
      if report ~= '' then
        apply_report(S, log, report, user)
      else
        enter_epoch(S, log, user)
        trim(S, log)
      end
      states[state] = S
      loaded[#loaded + 1] = {state, user, n}
    end
  end
  if is_duplicate then return first.seq, 0 end
  local seq, dropped = append_entry(S, log, user, message[1], message[2], message[3])
  if seq > 0 and notified[#notified] ~= user then notified[#notified + 1] = user end
  -- A recipient above the quota may be below it in a retry, so only success is stored.
  if dispatch_id ~= '' and seq > 0 then
    redis.call('SET', dedup_entry, cmsgpack.pack({at = NOW, seq = seq}), 'PX', int(window))
  end
  return seq, dropped
end

-- Runs a part of the step for one user. Returns nil where the log is damaged: other users' parts still run. An error of Lua
-- itself also means damage: a stored value does not have the form that it was written in.
local function guard_damage(part, ...)
  local ok, first, second = pcall(part, ...)
  if ok then return first, second end
  if not is_damage(first) and not (type(first) == 'string' and string.find(first, '^user_script:')) then
    error(type(first) == 'table' and first or {err = first})
  end
  return nil
end

local item_states = {}
for n = 1, (#A - at + 1) / 3 do
  local state = K[n * 3]
  item_states[n] = state
  local seq, dropped
  if not damaged[state] then seq, dropped = guard_damage(append, n, messages[tonumber(A[at])], A[at + 1], A[at + 2]) end
  if not seq then damaged[state] = true end
  answer[#answer + 1] = seq or -1
  answer[#answer + 1] = dropped or 0
  answer[#answer + 1] = -1
  answer[#answer + 1] = 0
  at = at + 3
end
for _, item in ipairs(loaded) do
  local state, user, n = item[1], item[2], item[3]
  local next_expiry, not_indexed
  if not damaged[state] then next_expiry, not_indexed = guard_damage(save, state, states[state], user) end
  if next_expiry then answer[n * 4 - 1], answer[n * 4] = next_expiry, not_indexed else damaged[state] = true end
end
-- A state that was not saved has none of its new entries.
for n, state in ipairs(item_states) do
  if damaged[state] then answer[n * 4 - 3], answer[n * 4 - 2] = -1, 0 end
end
if #notified > 0 then redis.call('PUBLISH', A[14], SERVER .. '\0' .. table.concat(notified, '\0')) end
answer[#answer + 1] = SINGLE_REDIS and redis.call('HINCRBY', A[17], 'appends', 1) or 0
return answer
