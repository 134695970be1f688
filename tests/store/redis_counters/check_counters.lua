-- Compares the state of a log with its stream, entry by entry. Knows the packed fields of the state, and nothing of the script
-- that writes them.
--
-- KEYS: 1 the state, 2 the stream. ARGV: 1 quota of messages; 2 whether the state has the time of the next expiry (1), as it does on a
-- single Redis. Returns the errors, one sentence each, and the log as JSON ('' = no log).

local errors = {}
local function check(is_so, ...)
  if is_so then return end
  local words = {}
  for at = 1, select('#', ...) do words[at] = tostring((select(at, ...))) end
  if #errors < 20 then errors[#errors + 1] = table.concat(words, ' ') end
end

local packed = redis.call('GET', KEYS[1])
if not packed then
  check(redis.call('XLEN', KEYS[2]) == 0, 'expected a state for the entries')
  return {errors, ''}
end
local S = cmsgpack.unpack(packed)

-- Checks that a stored time of expiry is no later than that of the first entry to expire.
local function check_expires(stored, first, subject)
  if first then check(stored > 0 and stored <= first, subject, 'expires at', first, 'and the stored time is', stored) end
end
local function earlier(a, b) return b > 0 and (not a or b < a) and b or a end

local entries, at_seq, bytes, first_expiry = {}, {}, 0, nil
for _, found in ipairs(redis.call('XRANGE', KEYS[2], '-', '+')) do
  local entry = {seq = tonumber(string.match(found[1], '^(%d+)-0$'))}
  for at = 1, #found[2], 2 do
    if found[2][at] == 'p' then entry.bytes = #found[2][at + 1] end
    if found[2][at] == 'e' then entry.expires = tonumber(found[2][at + 1]) end
  end
  entries[#entries + 1] = entry
  at_seq[entry.seq] = entry
  bytes = bytes + entry.bytes
  first_expiry = earlier(first_expiry, entry.expires)
end
check(S.n == #entries, 'n is', S.n, 'and the stream has', #entries, 'entries')
check(S.b == bytes, 'b is', S.b, 'and the entries have', bytes)
check(S.n <= tonumber(ARGV[1]), 'there are', S.n, 'entries, above the quota')
check_expires(S.exp, first_expiry, 'the log')
if #entries > 0 then
  check(S.trimmed < entries[1].seq, 'trimmed is', S.trimmed, 'and the first entry is', entries[1].seq)
  check(entries[#entries].seq <= S.head, 'head is', S.head, 'and the last entry is', entries[#entries].seq)
end
if ARGV[2] == '1' and S.exp > 0 then
  check(S.due > 0 and S.due <= S.exp, 'exp is', S.exp, 'and due is', S.due)
end

-- Blocks.
local RECORD, RECORD_BYTES, ENTRIES_MAX, BYTES_MAX, PAYLOAD_MAX = '<dI2dI4', 22, 512, 256 * 1024, 64 * 1024 + 32
check(#S.bl % RECORD_BYTES == 0, 'blocks have', #S.bl, 'bytes')
local blocks = {}
for at = 1, #S.bl, RECORD_BYTES do
  local first, n, b, expires = struct.unpack(RECORD, S.bl, at)
  blocks[#blocks + 1] = {first = first, n = n, b = b, expires = expires}
end
local all_n, all_b, next_entry = 0, 0, 1
for k, block in ipairs(blocks) do
  local subject = 'block ' .. k .. ' of ' .. #blocks
  local following = blocks[k + 1]
  check(block.n > 0, subject, 'is empty')
  check(not following or block.first < following.first, subject, 'begins at', block.first, 'and the next block does not begin later')
  check(block.n <= ENTRIES_MAX and block.b < BYTES_MAX + PAYLOAD_MAX, subject, 'is too large:', block.n, block.b)
  local n, b, first = 0, 0, nil
  while entries[next_entry] and (not following or entries[next_entry].seq < following.first) do
    local entry = entries[next_entry]
    check(entry.seq >= block.first, subject, 'begins at', block.first, 'and has', entry.seq)
    n, b, first, next_entry = n + 1, b + entry.bytes, earlier(first, entry.expires), next_entry + 1
  end
  check(n == block.n and b == block.b, subject, 'counts', block.n, 'entries and', block.b, 'bytes, and has', n, b)
  check_expires(block.expires, first, subject)
  -- A block stores times of expiry in 32 bits.
  check(block.expires == 0 or S.exp > 0 and math.min(S.exp, 4294967295) <= block.expires, subject, 'expires at', block.expires,
    'and exp is', S.exp)
  all_n, all_b = all_n + block.n, all_b + block.b
end
check(all_n == S.n and all_b == S.b, 'n and b are', S.n, S.b, 'and the blocks have', all_n, all_b)

-- Keys.
local seen = {}
for _, key in ipairs(S.keys) do
  local entry = at_seq[key[2]]
  check(entry, 'key', key[1], 'is at', key[2], 'which is no entry')
  check(not entry or entry.expires == key[3], 'key', key[1], 'expires at', key[3], 'and its entry at', entry and entry.expires)
  check(not seen[key[1]], 'key', key[1], 'is stored twice')
  seen[key[1]] = true
end
check(#S.keys <= 64, 'expected at most 64 keys, not', #S.keys)

-- Cursors.
local cursors, names, low = {}, {}, nil
if S.sh then cursors[1], names[1] = S.sh, '' end
for _, device in ipairs(S.dv) do
  for _, name in ipairs(names) do check(name ~= device[1], 'device', name, 'is stored twice') end
  cursors[#cursors + 1], names[#names + 1] = device[2], device[1]
end
check(#cursors > 0, 'expected a cursor')
for at, c in ipairs(cursors) do
  local subject, last = 'cursor "' .. names[at] .. '"', c.t
  check(c.t <= S.head, subject, 'is at', c.t, 'and head is', S.head)
  check(#c.i <= 16, subject, 'has', #c.i, 'ranges')
  for _, range in ipairs(c.i) do
    check(range[1] > last + 1, subject, 'has a range from', range[1], 'next to one that ends at', last)
    check(range[1] <= range[2] and range[2] <= S.head, subject, 'has a range', range[1], range[2], 'and head is', S.head)
    last = range[2]
  end
  low = math.min(low or c.t, c.t)
end
check(S.trimmed <= (low or 0), 'trimmed is', S.trimmed, 'and the lowest cursor is at', low)

-- Gaps. Cleared entries may be held, and expired ones may still be stored. Entries lost for other reasons are removed.
local last, last_reason = 0, nil
for _, gap in ipairs(S.gaps) do
  check(gap[1] > last and gap[1] <= gap[2], 'a gap', gap[1], gap[2], 'after one up to', last)
  check(gap[1] > last + 1 or gap[3] ~= last_reason, 'two adjacent gaps with one reason, at', gap[1])
  last, last_reason = gap[2], gap[3]
  if gap[3] ~= 2 and gap[3] ~= 0 then
    for _, entry in ipairs(entries) do
      check(entry.seq < gap[1] or entry.seq > gap[2], 'entry', entry.seq, 'is in a gap', gap[1], gap[2], 'with reason', gap[3])
    end
  end
end
check(#S.gaps <= 64 and last <= S.head, 'there are', #S.gaps, 'gaps, the last up to', last, 'and head is', S.head)

-- The log, from which the test predicts the next append.
local held = 0
for _, report in pairs(S.reports) do
  if report.hold >= 0 then held = held + 1 end
end
-- After a failover, acknowledged entries stay until all live servers have reported. This script does not know these.
if S.entered then held = held + 1 end
local log = {head = S.head, epoch = S.name or '', held = held, entries = {}, keys = {}, cursors = {}}
for at, entry in ipairs(entries) do log.entries[at] = {entry.seq, entry.bytes, entry.expires} end
for at, key in ipairs(S.keys) do log.keys[at] = key end
for at, c in ipairs(cursors) do
  local words = {names[at], c.t}
  for _, range in ipairs(c.i) do words[#words + 1], words[#words + 2] = range[1], range[2] end
  log.cursors[at] = words
end
log.blocks = #blocks
-- cjson encodes an empty table as an object.
for _, list in ipairs({'entries', 'keys', 'cursors'}) do
  if #log[list] == 0 then log[list] = nil end
end
return {errors, cjson.encode(log)}
