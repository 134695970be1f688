-- A cursor: acknowledged sequences, as a prefix up to t and out-of-order ranges i.

local function has_acknowledged(c, seq)
  if seq <= c.t then return true end
  for _, r in ipairs(c.i) do
    if seq >= r[1] and seq <= r[2] then return true end
  end
  return false
end

local function acknowledge(c, from, to)
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

local function all_have_acknowledged(S, seq)
  for _, c in ipairs(cursors(S)) do
    if not has_acknowledged(c, seq) then return false end
  end
  return true
end

local function acknowledge_for_all(S, from, to)
  for _, c in ipairs(cursors(S)) do acknowledge(c, from, to) end
end

local function acknowledged_by_all(S)
  local both
  for _, c in ipairs(cursors(S)) do
    if not both then
      both = {t = c.t, i = c.i}
    else
      local left, right = ranges(both), ranges(c)
      both = {t = 0, i = {}}
      for _, l in ipairs(left) do
        for _, r in ipairs(right) do acknowledge(both, math.max(l[1], r[1]), math.min(l[2], r[2])) end
      end
    end
  end
  return both
end

local function cursor(S, device)
  if device == '' then return S.sh end
  for _, d in ipairs(S.dv) do
    if d[1] == device then return d[2] end
  end
end
