-- Appending an event: its id, its entry in the history, and the live message.

local function live(state, channel, id, prev, payload)
  redis.call('SPUBLISH', state.prefix .. LIVE .. run_part .. channel, id .. ' ' .. prev .. '\n' .. payload)
end

-- Represents a channel in the set of channels that had events. Names are not kept longer than the channels.
local function mark(channel)
  return string.sub(redis.sha1hex(channel), 1, 16)
end

-- Whether a channel that Redis does not know may have had events that were lost. `kept` is for how long it is known to
-- have had none.
local function is_doubtful(state, kept)
  if state.wiped > state.now - kept then
    return true
  end
  local lost_ms = parse(state.horizon)
  return state.horizon ~= state.origin and state.now < lost_ms + LOST_BEGINNINGS
end

-- Notes the id of a channel's newest event in its list of ids. The list begins with the id of the channel's first
-- event, or with '-' if that is not known or no longer in it.
local function note_id(state, channel, rule, id, is_first)
  local key = state.prefix .. IDS .. channel
  if not is_first then
    local keep = math.min(rule.history + SPARE_IDS, MAX_IDS)
    local count = redis.call('RPUSH', key, id)
    if count > keep + keep / 4 then
      redis.call('LTRIM', key, -keep, -1)
      redis.call('LPUSH', key, '-')
    end
    return
  end
  local past = state.prefix .. PAST
  local is_new = redis.call('ZADD', past, state.now, mark(channel)) == 1
  if is_new and redis.call('ZCARD', past) > MAX_PAST then
    redis.call('ZREMRANGEBYRANK', past, 0, 0)
  end
  if is_new and not is_doubtful(state, known(state, rule.expire)) then
    redis.call('RPUSH', key, id)
  else
    redis.call('RPUSH', key, '-', id)
  end
end

-- Appends one event. Returns its id, '-' for an ephemeral channel, or an error table.
local function append(state, channel, payload)
  local rule = rule_of(channel)
  if rule.history == 0 then
    live(state, channel, '-', '-', payload)
    return '-'
  end
  local ids_key = state.prefix .. IDS .. channel
  local log_key = state.prefix .. LOG .. channel
  local prev = redis.call('LINDEX', ids_key, -1)
  local is_first = not prev
  prev = prev or ago(state, known(state, rule.expire))
  -- The first event after the horizon names the horizon, so that readers notice it.
  local prev_ms, prev_seq = parse(prev)
  local horizon_ms, horizon_seq = parse(state.horizon)
  if less(prev_ms, prev_seq, horizon_ms, horizon_seq) then
    prev = state.horizon .. FORGOTTEN
  end
  local id = text(state.ms, state.seq + 1)
  local added = redis.pcall('XADD', log_key, 'MAXLEN', '~', rule.history, id,
    'prev', prev, 'payload', payload)
  if type(added) == 'table' and added.err then
    return added
  end
  next_id(state)
  redis.call('XTRIM', log_key, 'MINID', '~', ago(state, rule.max_age))
  -- If ids are ahead of the server's time, they are also kept until the server's time has reached them.
  local expire = rule.expire + math.max(0, state.ms - state.now)
  redis.call('PEXPIRE', log_key, expire)
  note_id(state, channel, rule, id, is_first)
  redis.call('PEXPIRE', ids_key, expire)
  trace(state, 'channels', channel)
  live(state, channel, id, prev, payload)
  return id
end
