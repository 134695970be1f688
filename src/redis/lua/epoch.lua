-- Limits of renumbering in one step: more would block Redis for long. The newest entries are moved. Older ones were there
-- before the data went back.
local MOVED_MAX, MOVED_BYTES_MAX = 10000, 8 * 1024 * 1024

-- Gives pending entries new sequences, above `base`. Other sessions may receive them a second time. It happens once for a
-- log, when its data went back and one server noticed that later than another.
local function renumber(S, log, base)
  local k, n, b = blocks(S), 0, 0
  local from, last = S.head + 1, S.head
  while k > 0 do
    local first, entries, bytes = block(S, k)
    if n > 0 and (n + entries > MOVED_MAX or b + bytes > MOVED_BYTES_MAX) then break end
    from, n, b, k = first, n + entries, b + bytes, k - 1
  end
  if k == 0 then from = 1 end
  S.low = base
  S.bl = string.sub(S.bl, 1, k * RECORD_BYTES)
  S.head, S.n, S.b = base, S.n - n, S.b - b
  local all, received, keys, ids = cursors(S), {}, {}, {}
  for _, key in ipairs(S.keys) do keys[key[2]] = key end
  each(log, from, last, function(seq, entry)
    ids[#ids + 1] = id(seq)
    if all_have(S, seq) then return end
    S.head = S.head + 1
    redis.call('XADD', log, id(S.head), unpack(entry[2]))
    add(S, S.head, bytes_of(entry), tonumber(entry[2][8]))
    for _, c in ipairs(all) do
      if has(c, seq) then received[#received + 1] = {c, S.head} end
    end
    if keys[seq] then keys[seq][2] = S.head end
  end)
  mark_received_by_all(S, from, base)
  for _, one in ipairs(received) do insert(one[1], one[2], one[2]) end
  add_gap(S, from, base, LOST)
  forget_keys(S, function(key) return key[2] >= from and key[2] <= base end)
  delete(log, ids)
  if S.n == 0 then
    redis.call('DEL', log)
    S.exp = 0
  end
  trim(S, log)
end

-- Returns a sequence above `to`, and on a single Redis above those that logs got in this way before. The time of day alone is
-- not enough: a log may have had more entries since than milliseconds have passed.
local function above_lost(to)
  if not SINGLE_REDIS then return to end
  to = math.max(to, tonumber(redis.call('HGET', A[17], 'lost') or 0) + LOST_GAP_MIN)
  redis.call('HSET', A[17], 'lost', int(to))
  return to
end

-- Brings a log into the current epoch. It may have assigned sequences that this state does not know. So it continues beyond
-- them, and its clients get a gap with the reason `lost`.
local function enter(S, log, user)
  mend(S, log)
  local era = S.era
  if era and shared(era) == ERA then return end
  -- Only the state is missing: there was one if the stream has an entry, or the user is in the index.
  local is_lost = not era and (S.head > 0 or SINGLE_REDIS and redis.call('ZSCORE', K[1], user))
  local from, to = S.head + 1, BASE
  -- Sequences of an epoch in between may be lost. It began at this distance behind the same head.
  if era or is_lost then to = math.max(S.head + LOST_GAP_MIN, BASE) end
  -- A shard has no base. One that joined later may have had this log, and have come back without it.
  if not SINGLE_REDIS and (era or not string.find(A[17], ERA, 1, true)) then to = math.max(to, math.floor(NOW)) end
  -- The log may have come as far as this in its epoch.
  if is_lost then to = above_lost(math.max(to, BASE + LOST_GAP_MIN, math.floor(NOW))) end
  -- A log that does not exist may have been lost if the epoch is young.
  if era or is_lost or BASE > 0 and NOW < BEGAN + REPORT_TIMEOUT_MS then S.at = NOW end
  if era then add_earlier_name(S, era) else S.low = to end
  S.era = new_era()
  if era and is_suspect(shared(era)) then return renumber(S, log, to) end
  if to < from then return end
  S.head = to
  add_gap(S, from, to, LOST)
  mark_received_by_all(S, from, to)
  trim(S, log)
end

-- Compares what sessions of the caller know: the log `known`, up to `seen`, with `reported` changes. If that is another log,
-- or an older copy was restored, pending entries may lie below their cursors, so they are renumbered.
local function rejoin(S, log, known, seen, reported)
  local went_back = known ~= '' and seen > S.head or known == S.era and knows_less(S, reported)
  if not went_back and not knows_another_log(S, known) then return end
  add_earlier_name(S, known)
  S.at = NOW
  if went_back then
    if known ~= S.era then add_earlier_name(S, S.era) end
    S.era = new_era()
  elseif seen <= (S.low or 0) then
    return
  end
  renumber(S, log, above_lost(math.max(S.head + LOST_GAP_MIN, seen + LOST_GAP_MIN, BASE, math.floor(NOW))))
end
