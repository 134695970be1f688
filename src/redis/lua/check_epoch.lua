-- The failover epoch. Each step compares the epoch that its caller has adopted with the stored one, in the script that reads
-- and writes. Where they differ it does nothing, and the caller adopts the epoch first (redis/membership.rs). Returns the
-- name of the epoch, the sequence behind which logs begin that this Redis does not have, and epochs in which a server
-- appended that did not know of later ones.
local function find_epoch()
  local history = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
  -- In a Redis Cluster a step reads one slot only. There the epoch is the replication id of the shard, and each log stores
  -- it.
  if not SINGLE_REDIS then return string.sub(history, 1, 16), tonumber(A[16]), '' end
  local here = redis.call('HMGET', A[17], 'birth', 'history', 'era', 'base', 'steps', 'suspect')
  if not here[1] or here[1] .. '/' .. (here[3] or '') ~= A[15] or here[2] ~= history then return end
  -- The same epoch with fewer appends than the caller has seen: the data has gone back.
  if tonumber(here[5] or 0) < tonumber(A[16]) then return end
  return here[3], tonumber(here[4] or 0), here[6] or ''
end

-- When the caller's epoch began, in ms.
local BEGAN = tonumber(string.match(A[15], '%d+$')) or 0

local ERA, BASE, SUSPECT = find_epoch()
if not ERA then return 'era' end

local function is_suspect(era) return string.find(',' .. SUSPECT .. ',', ',' .. era .. ',', 1, true) end

-- In each epoch a log has a name: the epoch, and when the log began or entered it. So a log that was deleted and created
-- again has another name. The first function returns the part that all logs of an epoch share, the second a new name.
local function shared(era) return string.match(era, '^[^:]*') end
local function new_era() return ERA .. ':' .. int(NOW * 1000) end

-- Tells whether sessions that know this log as `known` have read another one, which no longer exists.
local function knows_another_log(S, known)
  if known == '' or not S.era or known == S.era then return false end
  for _, past in ipairs(S.past or {}) do
    if past == known then return false end
  end
  return true
end

-- Tells whether this log has fewer changes than the caller has reported to it: an older copy was restored.
local function knows_less(S, reported)
  local view = S.views[NODE]
  return view and view.n < reported
end
