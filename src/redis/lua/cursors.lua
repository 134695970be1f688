-- A cursor: acknowledged sequences, as a prefix up to t and out-of-order ranges i.

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
  local merged = {}
  for _, r in ipairs(c.i) do
    if r[1] <= to + 1 and from <= r[2] + 1 then
      from, to = math.min(from, r[1]), math.max(to, r[2])
    else
      merged[#merged + 1] = r
    end
  end
  if from <= c.t + 1 then
    c.t = to
  else
    local at = 1
    while merged[at] and merged[at][1] < from do at = at + 1 end
    table.insert(merged, at, {from, to})
    if #merged > RANGES_MAX then table.remove(merged, 1) end
  end
  c.i = merged
end

local function ranges(c)
  local all = {{1, c.t}}
  for _, r in ipairs(c.i) do all[#all + 1] = r end
  return all
end

-- The state of a log.

-- Tells whether an error is about a stored value. Any other (for example no permission) is about Redis.
local function is_damage(error)
  local text = type(error) == 'table' and error.err or tostring(error)
  return string.find(text, 'DAMAGED', 1, true) or string.find(text, 'WRONGTYPE', 1, true)
end

local function load(key)
  local packed = redis.call('GET', key)
  if packed then
    local whole, S = pcall(cmsgpack.unpack, packed)
    if not whole or type(S) ~= 'table' or not S.head then
      error({err = 'DAMAGED what is stored under ' .. key .. ' cannot be read'})
    end
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

local function lowest_cursor(S)
  local low
  for _, c in ipairs(cursors(S)) do low = math.min(low or c.t, c.t) end
  return low
end

local function all_have(S, seq)
  for _, c in ipairs(cursors(S)) do
    if not has(c, seq) then return false end
  end
  return true
end

local function mark_received_by_all(S, from, to)
  for _, c in ipairs(cursors(S)) do insert(c, from, to) end
end

local function received_by_all(S)
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

-- Records an earlier name of the log.
local function add_earlier_name(S, era)
  S.past = S.past or {}
  S.past[#S.past + 1] = era
  if #S.past > EARLIER_NAMES_MAX then table.remove(S.past, 1) end
end

local function cursor(S, device)
  if device == '' then return S.sh end
  for _, d in ipairs(S.dv) do
    if d[1] == device then return d[2] end
  end
end
