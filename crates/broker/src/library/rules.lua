-- Retention: the rule of a channel, and the times of earlier rules.

-- The parts of a pattern between its stars.
local function split(glob)
  local parts = {}
  for part in string.gmatch(glob .. '*', '([^*]*)%*') do
    parts[#parts + 1] = part
  end
  return parts
end

-- '*' matches any run of characters, and every other character matches itself. Each part is matched at its first place,
-- because clients choose the names, and Lua's own patterns would try all places of all parts. access/src/pattern.rs matches
-- the same way.
local function matches(parts, name)
  local first, last = parts[1], parts[#parts]
  if #parts == 1 then
    return name == first
  elseif string.sub(name, 1, #first) ~= first then
    return false
  end
  local at = #first + 1
  for i = 2, #parts - 1 do
    local _, found = string.find(name, parts[i], at, true)
    if not found then
      return false
    end
    at = found + 1
  end
  return string.sub(name, math.max(at, #name - #last + 1)) == last
end

local rules = {}
local rules_cached = 0

local function rule_of(channel)
  local cached = rules[channel]
  if cached then
    return cached
  end
  for _, rule in ipairs(RULES) do
    -- Not earlier, because Lua's own functions are not available while the library is loaded.
    rule.parts = rule.parts or split(rule.match)
    if matches(rule.parts, channel) then
      if rules_cached >= 10000 then
        rules, rules_cached = {}, 0
      end
      rules[channel], rules_cached = rule, rules_cached + 1
      return rule
    end
  end
end

-- The expiry times of the rules, as one word, and the shortest of them, in milliseconds.
local function expiries()
  local words, shortest = {}, math.huge
  for _, rule in ipairs(RULES) do
    words[#words + 1] = rule.match .. '\n' .. (rule.history > 0 and rule.expire or 0)
    if rule.history > 0 then
      shortest = math.min(shortest, rule.expire)
    end
    -- Every channel matches this rule, so the rules after it are never used.
    if rule.match == '*' then
      break
    end
  end
  return redis.sha1hex(table.concat(words, '\n')), shortest
end

-- Notes the rules for events that are appended from now on. If the rules were others until now, also notes for how long
-- those have kept every channel.
local function note_rules(state)
  local rules, shortest = expiries()
  local stored = redis.call('HMGET', state.key, 'rules', 'shortest')
  if stored[1] == rules then
    return
  end
  if stored[1] then
    state.kept, state.changed = known(state, tonumber(stored[2])), state.now
  end
  redis.call('HSET', state.key, 'rules', rules, 'shortest', string.format('%.0f', shortest),
    'kept', string.format('%.0f', state.kept), 'changed', string.format('%.0f', state.changed))
end
