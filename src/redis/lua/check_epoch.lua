-- Compares the failover epoch that the caller has adopted with the stored one, in the script that reads and writes. Where they
-- differ the step does nothing, and the caller adopts the stored epoch first (redis/membership.rs).

-- Returns the epoch, its base sequence (logs that this Redis does not have begin behind it), and the suspect epochs: in those
-- a server appended that did not know of later ones. Returns nothing where the epochs differ.
local function find_epoch()
  local replid = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
  -- In a Redis Cluster a step reads one slot only. There the epoch is the replication id of the shard, and each log stores
  -- it.
  if not SINGLE_REDIS then return string.sub(replid, 1, 16), tonumber(A[16]), '' end
  local stored = redis.call('HMGET', A[17], 'dataset', 'replid', 'epoch', 'base_seq', 'appends', 'suspect_epochs')
  if not stored[1] or stored[1] .. '/' .. (stored[3] or '') ~= A[15] or stored[2] ~= replid then return end
  -- The same epoch with fewer appends than the caller has seen: the data has gone back.
  if tonumber(stored[5] or 0) < tonumber(A[16]) then return end
  return stored[3], tonumber(stored[4] or 0), stored[6] or ''
end

-- When the caller's epoch began, in ms.
local EPOCH_BEGAN = tonumber(string.match(A[15], '%d+$')) or 0

local EPOCH, BASE_SEQ, SUSPECT_EPOCHS = find_epoch()
if not EPOCH then return 'epoch' end

local function is_suspect_epoch(epoch)
  return string.find(',' .. SUSPECT_EPOCHS .. ',', ',' .. epoch .. ',', 1, true)
end

-- The name of a log: its epoch, and when the log began or entered it. So a log that was deleted and created again has another
-- name.
local function epoch_of(name) return string.match(name, '^[^:]*') end
local function new_log_name() return EPOCH .. ':' .. int(NOW * 1000) end

-- Tells whether sessions that know this log as `known` have read another log, which no longer exists.
local function is_other_log(S, known)
  if known == '' or not S.name or known == S.name then return false end
  for _, name in ipairs(S.old_names or {}) do
    if name == known then return false end
  end
  return true
end

-- Tells whether an older copy of this log was restored: it has fewer changes than the caller has reported to it.
local function is_older_copy(S, reported)
  local report = S.reports[SERVER]
  return report and report.changes < reported
end
