-- Blocks measure runs of entries: how many there are, their bytes, and when the first expires, or earlier (0 = never).
--
-- The size of an entry is known only by reading all of it. So a range is measured by its blocks, and only the entries of the
-- blocks at its ends are read. A block has at most 512 entries, or 256 KiB and one entry. Its record: first sequence (or
-- less), entries, bytes, expiry in seconds.
local BLOCK_MAX, BLOCK_BYTES_MAX = 512, 256 * 1024
local RECORD, RECORD_BYTES = '<dI2dI4', 22

-- Later times are stored as this one, which is earlier. Truncated to 32 bits they would lie in the past.
local SECONDS_MAX = 4294967295

local function blocks(S) return #S.bl / RECORD_BYTES end
local function block(S, k) return struct.unpack(RECORD, S.bl, (k - 1) * RECORD_BYTES + 1) end
local function last_of(S, k) return k < blocks(S) and block(S, k + 1) - 1 or S.head end

local function set_block(S, k, first, n, b, expires)
  local record = n > 0 and struct.pack(RECORD, first, n, b, math.min(expires, SECONDS_MAX)) or ''
  S.bl = string.sub(S.bl, 1, (k - 1) * RECORD_BYTES) .. record .. string.sub(S.bl, k * RECORD_BYTES + 1)
end

-- Finds the block of a sequence; 0 = before the first.
local function block_of(S, seq)
  local low, high = 0, blocks(S)
  while low < high do
    local middle = math.ceil((low + high) / 2)
    if block(S, middle) <= seq then low = middle else high = middle - 1 end
  end
  return low
end

-- Counts a new last entry.
local function count_appended(S, seq, bytes, expires)
  S.n, S.b, S.exp = S.n + 1, S.b + bytes, earlier(S.exp, expires)
  local k = blocks(S)
  if k > 0 then
    local first, n, b, before = block(S, k)
    if n < BLOCK_MAX and b < BLOCK_BYTES_MAX then
      return set_block(S, k, first, n + 1, b + bytes, earlier(before, expires))
    end
  end
  set_block(S, k + 1, seq, 1, bytes, expires)
end

-- Returns sequences and sizes of a block's entries. Cached in steps that change nothing: they measure several ranges of one
-- block.
local block_cache
local function sizes(S, log, k, first)
  local cached = block_cache[k]
  if cached then return cached end
  cached = {}
  each_entry(log, first, last_of(S, k), function(seq, entry) cached[#cached + 1] = {seq, bytes_of(entry)} end)
  block_cache[k] = cached
  return cached
end

-- Counts the entries from..to and their bytes. A step without `block_cache` reads only those of a block that are in the
-- range. So a step that evicts for each of many messages reads the few evicted entries.
local function count_range(S, log, from, to)
  local n, b = 0, 0
  if from > to then return n, b end
  for k = math.max(block_of(S, from), 1), blocks(S) do
    local first, all, bytes = block(S, k)
    local last = last_of(S, k)
    if first > to then break end
    if from <= first and last <= to then
      n, b = n + all, b + bytes
    elseif block_cache then
      for _, entry in ipairs(sizes(S, log, k, first)) do
        if entry[1] >= from and entry[1] <= to then n, b = n + 1, b + entry[2] end
      end
    else
      each_entry(log, math.max(from, first), math.min(last, to), function(_, entry) n, b = n + 1, b + bytes_of(entry) end)
    end
  end
  return n, b
end

-- Counts the entries that are not in `c` and their bytes, including expired ones that are not removed yet.
local function pending(S, log, c)
  local n, b = S.n, S.b
  for _, r in ipairs(ranges(c)) do
    local acknowledged, bytes = count_range(S, log, r[1], math.min(r[2], S.head))
    n, b = n - acknowledged, b - bytes
  end
  return n, b
end
