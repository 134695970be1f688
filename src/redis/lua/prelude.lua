-- Begins every step on users' logs. Redis does a step completely or not at all. The contract is in src/store/mod.rs. The
-- scripts do on Redis what the embedded store does in src/embedded.
--
-- A log is two keys of one slot: the state (load_state.lua), and a stream. The id of an entry in the stream is its sequence.
--
-- ARGV: 1 step, 2 this server, 3 live servers (a,b,c), 4 when those were listed (ms), 5 milliseconds by which the clock is
-- ahead (tests), 6 quota of one user in entries and 7 in bytes, 8 maximum age in ms (0 = none), 9 overflow (drop or reject),
-- 10 device age in ms (0 = none), 11 maximum number of devices, 12 window of dispatch ids in ms, 13 fingerprint of the
-- namespace, 14 append channel, 15 the epoch that the caller has adopted (DATASET/EPOCH), 16 appends in it that the caller has
-- seen (in a Redis Cluster the base sequence of the epoch), 17 key of the epoch (in a Redis Cluster replication ids of its
-- first shards). Arguments of the step begin at 18.
--
-- KEYS: 1 user index, 2 expiry index; the step's own from 3. In a Redis Cluster the first three are the same, and the caller
-- writes the indexes from the results.

local A, K = ARGV, KEYS
local SERVER, LISTED_AT, SINGLE_REDIS = A[2], tonumber(A[4]), K[1] ~= K[3]
local QUOTA_ENTRIES, QUOTA_BYTES, AGE_MAX, DROP_OLDEST = tonumber(A[6]), tonumber(A[7]), tonumber(A[8]), A[9] == 'drop'
local DEVICE_AGE, DEVICES_MAX, DEDUP_WINDOW = tonumber(A[10]), tonumber(A[11]), tonumber(A[12])
local RANGES_MAX, REASONS_MAX, KEYS_MAX = 16, 64, 64

-- Limits of what one step scans in addition to its result. At a limit the step ends, and the next step resumes.
local SCAN_ENTRIES_MAX, SCAN_BYTES_MAX = 1024, 1024 * 1024

-- Reasons of gaps, as stored (GapReason).
local REASON_QUOTA, REASON_COLLAPSED, REASON_CLEARED, REASON_LOST = 1, 3, 2, 5

-- Minimum distance behind its head at which a log continues after it may have lost assigned sequences.
local LOST_GAP_MIN = 1000000

-- Earlier names of a log that its state stores.
local OLD_NAMES_MAX = 16

-- Time in which servers must report again after a log has entered an epoch, in ms.
local REPORT_TIMEOUT_MS = 15000

local LIVE_SERVERS = {}
for server in string.gmatch(A[3], '[^,]+') do LIVE_SERVERS[server] = true end
LIVE_SERVERS[SERVER] = true

local time = redis.call('TIME')
local NOW = time[1] * 1000 + time[2] / 1000 + tonumber(A[5])
local NOW_SECONDS = math.floor(NOW / 1000)

local function int(n) return string.format('%.0f', n) end
local function id(seq) return int(seq) .. '-0' end
local function is_expired(at) return at > 0 and at <= NOW_SECONDS end
local function earlier(a, b)
  if a == 0 then return b elseif b == 0 then return a else return math.min(a, b) end
end
