-- Ends of channels that functions append, in their turn among the raw messages.
--
-- Raw messages wait at the recorders until they are recorded. An end that a function appended at once would be stored
-- before raw messages that were published before it, and they would open the channel again. So the end waits here, and
-- is announced to the recorders. They receive it after those messages. The active one has it appended in its turn, like
-- a message.

-- Maximum ends that one call announces again.
local MAX_REPEATED = 16

-- By partition and channel: when an end was last announced by this server process, in milliseconds.
local announced = {}

-- Announces an end. Returns how many recorders receive it.
local function announce(prefix, channel, name, now)
  announced[prefix] = announced[prefix] or {}
  announced[prefix][channel] = now
  return redis.call('SPUBLISH', prefix .. ENDS .. ':' .. run_part, name .. ' ' .. channel)
end

-- Announces the ends again that have waited for long: their recorders may have died, or relayed messages while Redis
-- took no writes.
local function announce_again(prefix, now)
  local key = prefix .. ENDS
  if redis.call('EXISTS', key) == 0 then
    announced[prefix] = nil
    return
  end
  for _, channel in ipairs(redis.call('HRANDFIELD', key, MAX_REPEATED)) do
    local last = announced[prefix] and announced[prefix][channel]
    if not last or last > now or now - last >= REPEAT then
      local name = string.match(redis.call('HGET', key, channel), '^%S+')
      announce(prefix, channel, name, now)
    end
  end
end

-- Appends the end of a channel that waits, if it has this name or no name is given. Returns '-' if there is none.
local function append_end(state, channel, name)
  local key = state.prefix .. ENDS
  local stored = redis.call('HGET', key, channel)
  local stored_name, payload = string.match(stored or '', '^(%S+)\n(.*)$')
  if not payload or (name and name ~= stored_name) then
    return '-'
  end
  redis.call('HDEL', key, channel)
  if announced[state.prefix] then
    announced[state.prefix][channel] = nil
  end
  return append(state, channel, payload)
end

-- Leaves an end to the recorders. Returns '-', because it has no id yet. If no recorder is subscribed, no message waits,
-- and it is appended at once.
local function append_in_turn(state, channel, payload)
  -- An id that no event has names it.
  local name = next_id(state)
  if announce(state.prefix, channel, name, state.now) == 0 then
    announced[state.prefix][channel] = nil
    return append(state, channel, payload)
  end
  redis.call('HSET', state.prefix .. ENDS, channel, name .. '\n' .. payload)
  state.ends_wait = true
  return '-'
end

-- Appends an event of a function. An end of the channel that waits is older, so it is appended first.
local function append_later(state, channel, payload, is_end)
  if state.ends_wait == nil then
    state.ends_wait = redis.call('EXISTS', state.prefix .. ENDS) == 1
  end
  if state.ends_wait then
    append_end(state, channel)
  end
  if is_end then
    return append_in_turn(state, channel, payload)
  end
  return append(state, channel, payload)
end
