-- Limits of renumbering in one step: more would block Redis for long. The newest entries are renumbered. Older ones were
-- stored before the data went back.
local RENUMBERED_MAX, RENUMBERED_BYTES_MAX = 10000, 8 * 1024 * 1024

-- Gives pending entries new sequences, above `base`. Other sessions may receive them a second time. It happens once for a
-- log, when its data went back and one server noticed that later than another.
local function renumber(S, log, base)
  local k, n, b = blocks(S), 0, 0
  local from, last = S.head + 1, S.head
  while k > 0 do
    local first, entries, bytes = block(S, k)
    if n > 0 and (n + entries > RENUMBERED_MAX or b + bytes > RENUMBERED_BYTES_MAX) then break end
    from, n, b, k = first, n + entries, b + bytes, k - 1
  end
  if k == 0 then from = 1 end
  S.start = base
  S.bl = string.sub(S.bl, 1, k * RECORD_BYTES)
  S.head, S.n, S.b = base, S.n - n, S.b - b
  local all, acknowledged, keys, ids = cursors(S), {}, {}, {}
  for _, key in ipairs(S.keys) do keys[key[2]] = key end
  each_entry(log, from, last, function(seq, entry)
    ids[#ids + 1] = id(seq)
    if all_have_acknowledged(S, seq) then return end
    S.head = S.head + 1
    redis.call('XADD', log, id(S.head), unpack(entry[2]))
    count_appended(S, S.head, bytes_of(entry), tonumber(entry[2][8]))
    for _, c in ipairs(all) do
      if has_acknowledged(c, seq) then acknowledged[#acknowledged + 1] = {c, S.head} end
    end
    if keys[seq] then keys[seq][2] = S.head end
  end)
  acknowledge_for_all(S, from, base)
  for _, ack in ipairs(acknowledged) do acknowledge(ack[1], ack[2], ack[2]) end
  add_gap(S, from, base, REASON_LOST)
  remove_keys(S, function(key) return key[2] >= from and key[2] <= base end)
  delete_entries(log, ids)
  if S.n == 0 then
    redis.call('DEL', log)
    S.exp = 0
  end
  trim(S, log)
end

-- Returns a sequence above `to`, and on a single Redis above all that logs were given in this way before. The time of day
-- alone is not enough: a log may have had more entries since than milliseconds have passed.
local function above_lost_gaps(to)
  if not SINGLE_REDIS then return to end
  to = math.max(to, tonumber(redis.call('HGET', A[17], 'lost_gaps_end') or 0) + LOST_GAP_MIN)
  redis.call('HSET', A[17], 'lost_gaps_end', int(to))
  return to
end

-- Brings a log into the current epoch. Redis may have lost assigned sequences that this state does not know. So the log
-- continues beyond them, and its clients get a gap with the reason `lost`.
local function enter_epoch(S, log, user)
  mend(S, log)
  local before = S.name
  if before and epoch_of(before) == EPOCH then return end
  -- Only the state is missing: there was one if the stream has an entry, or the user is in the index.
  local is_lost = not before and (S.head > 0 or SINGLE_REDIS and redis.call('ZSCORE', K[1], user))
  local from, to = S.head + 1, BASE_SEQ
  -- Sequences of an epoch in between may be lost. It began at this distance behind the same head.
  if before or is_lost then to = math.max(S.head + LOST_GAP_MIN, BASE_SEQ) end
  -- A shard has no base sequence. A shard that joined later may have had this log, and have come back without it.
  if not SINGLE_REDIS and (before or not string.find(A[17], EPOCH, 1, true)) then to = math.max(to, math.floor(NOW)) end
  -- The log may have come as far as this in its epoch.
  if is_lost then to = above_lost_gaps(math.max(to, BASE_SEQ + LOST_GAP_MIN, math.floor(NOW))) end
  -- A log that does not exist may have been lost if the epoch is young.
  if before or is_lost or BASE_SEQ > 0 and NOW < EPOCH_BEGAN + REPORT_TIMEOUT_MS then S.entered = NOW end
  if before then add_old_name(S, before) else S.start = to end
  S.name = new_log_name()
  if before and is_suspect_epoch(epoch_of(before)) then return renumber(S, log, to) end
  if to < from then return end
  S.head = to
  add_gap(S, from, to, REASON_LOST)
  acknowledge_for_all(S, from, to)
  trim(S, log)
end

-- Compares this log with the one that the caller's sessions know: its name `known`, its highest sequence `seen`, and the
-- number of reported changes. If it is another log, or an older copy was restored, pending entries may lie below their
-- cursors. So these are renumbered.
local function reconcile(S, log, known, seen, reported)
  local went_back = known ~= '' and seen > S.head or known == S.name and is_older_copy(S, reported)
  if not went_back and not is_other_log(S, known) then return end
  add_old_name(S, known)
  S.entered = NOW
  if went_back then
    if known ~= S.name then add_old_name(S, S.name) end
    S.name = new_log_name()
  elseif seen <= (S.start or 0) then
    return
  end
  renumber(S, log, above_lost_gaps(math.max(S.head + LOST_GAP_MIN, seen + LOST_GAP_MIN, BASE_SEQ, math.floor(NOW))))
end
