-- The lease of the active recorder, in-sync marks, and candidacies.

-- Notes for that many milliseconds that a replica is subscribed and has missed nothing.
local function note_in_sync(prefix, replica, ttl)
  redis.call('ZADD', prefix .. IN_SYNC, now_ms() + ttl, replica)
  redis.call('PEXPIRE', prefix .. IN_SYNC, ttl)
end

-- Removes marks with times that only another server's clock can have written, which was ahead of this one.
local function forget_future(key, latest)
  redis.call('ZREMRANGEBYSCORE', key, '(' .. latest, '+inf')
end

-- Whether a token belongs to this replica.
local function is_of(token, replica)
  return string.sub(token, 1, #replica + 1) == replica .. ':'
end

-- Whether Redis was flushed so recently that in-sync recorders may not have renewed their marks yet.
local function just_flushed(key, now, ttl)
  if last_clock[key] and redis.call('EXISTS', key) == 0 then
    flushed[key] = now
  end
  local since = flushed[key]
  return since and now >= since and now - since < ttl
end

-- Ends the lease, also after a move.
local function end_lease(key, prefix)
  redis.call('DEL', prefix .. LEASE)
  redis.call('HDEL', key, 'holder')
end

-- The subscription to which a token or a barrier belongs: the part before the last dash.
local function subscription_of(name)
  return string.match(name, '^(.*)%-')
end

-- replica, subscription, run id of this server
--
-- A replica subscribes to raw messages in the same step. The order of these calls is that of the subscriptions.
local function subscribe(_, args)
  refuse_backends()
  run_part = part_of(args[3])
  subscriptions = subscriptions + 1
  if subscriptions % 10000 == 0 then
    numbers = {}
  end
  numbers[args[1]] = { subscription = args[2], number = subscriptions }
  return subscriptions
end

-- The number of a subscription. If it was not numbered in its step, it counts as the last.
local function number_of(replica, subscription)
  local numbered = numbers[replica]
  if numbered and numbered.subscription == subscription then
    return numbered.number
  end
  subscriptions = subscriptions + 1
  return subscriptions
end

-- replica, barrier, milliseconds
--
-- A recorder that has just subscribed is out of sync, and publishes its barrier. Its earlier in-sync mark is not valid
-- any more. A barrier of its subscription before may arrive late, and has no effect.
local function listen(keys, args)
  if not run_part then
    return not_ready(keys)
  end
  local replica, barrier, ttl = args[1], args[2], tonumber(args[3])
  local prefix = string.sub(keys[1], 1, -1 - #CLOCK)
  local subscription = subscription_of(barrier)
  listeners[keys[1]] = listeners[keys[1]] or {}
  local own = listeners[keys[1]][replica]
  if own and own.before == subscription then
    return 1
  end
  redis.call('ZREM', prefix .. IN_SYNC, replica)
  -- A barrier that is published again belongs to the same subscription.
  if not own or own.subscription ~= subscription then
    local before = own and (own.subscription or own.before)
    own = { subscription = subscription, number = number_of(replica, subscription), before = before }
    listeners[keys[1]][replica] = own
  end
  own.ends = now_ms() + ttl
  redis.call('SPUBLISH', prefix .. RECORDED .. run_part, barrier)
  return 1
end

-- Whether there is another recorder that subscribed earlier. It has messages that this one missed, so it has to record.
local function is_later(key, replica, now, ttl)
  local own = listeners[key] and listeners[key][replica]
  local later = false
  if own then
    own.ends = now + ttl
  end
  for other, listener in pairs(listeners[key] or {}) do
    if listener.ends < now or listener.ends > now + ttl then
      listeners[key][other] = nil
    elseif own and listener.number and own.number and listener.number < own.number then
      later = true
    end
  end
  return later
end

-- Whether other recorders have recorded raw messages since that number of appends.
local function is_late(key, count, token)
  return (appends[key] or 0) ~= count and subscription_of(appender[key] or '') ~= subscription_of(token)
end

-- replica, new token, milliseconds, 1 if the caller is in sync, then nothing, or the number of a preemption
--
-- An out-of-sync caller may have missed messages that are not recorded yet. So it is denied the lease while any
-- recorder is in sync, even if it still holds the lease from before. A recorder, in sync or out of sync, preempts an
-- out-of-sync holder that may have missed messages pending at that recorder, and takes the lease from it.
--
-- The new token is published as a fence: when it arrives, every append of an earlier token has been seen, and there
-- will be no more. The number of appends that have recorded raw messages follows the token of an out-of-sync caller. A
-- preemption of that caller carries this number. It is too late when others have recorded raw messages since: the
-- preempting recorder's messages are older, and would be recorded after them. '>' follows if a recorder carried the
-- partition here: it may have recorded messages that have not arrived.
--
-- Answers 0 when the lease is denied, 1 when it is granted, 2 when recording was interrupted as well: there was a
-- recorder before, and no replica was subscribed all the time since. Raw messages of that time may be lost, also those
-- on their way to a subscriber that was cut. So the horizon moves, and clients receive a gap. It does not move if no
-- raw message was recorded since this process started, because events that functions append are not lost by this. In a
-- cluster it moves if any was recorded under an earlier process.
-- Answers 3 when a preemption is too late: the caller is out of sync from then on.
local function acquire(keys, args)
  local refused = not_ready(keys)
  if refused then
    return refused
  end
  local replica, token, ttl, in_sync = args[1], args[2], tonumber(args[3]), args[4] == '1'
  local state = load(keys)
  if is_shut(state, replica) then
    -- It still has all messages, and may have to record them if the migration fails.
    if in_sync and state.phase == 'closing' and not stepped_down[keys[1] .. replica] then
      note_in_sync(state.prefix, replica, ttl * IN_SYNC_LEASES)
    end
    return 0
  end
  local preemption = tonumber(args[5])
  local prefix = string.sub(keys[1], 1, -1 - #CLOCK)
  local now = now_ms()
  if preemption and is_late(keys[1], preemption, token) then
    redis.call('ZREM', prefix .. IN_SYNC, replica)
    if is_of(redis.call('GET', prefix .. LEASE) or '', replica) then
      end_lease(keys[1], prefix)
      redis.call('SPUBLISH', prefix .. RECORDED .. run_part, '~')
    end
    return 3
  elseif preemption then
    stepped_down[keys[1] .. replica] = nil
  elseif stepped_down[keys[1] .. replica] then
    return 0
  end
  forget_future(prefix .. IN_SYNC, now + ttl * IN_SYNC_LEASES)
  if in_sync then
    note_in_sync(prefix, replica, ttl * IN_SYNC_LEASES)
  else
    redis.call('ZREM', prefix .. IN_SYNC, replica)
  end
  local later = is_later(keys[1], replica, now, ttl)
  local holder = redis.call('GET', prefix .. LEASE)
  local own = holder and is_of(holder, replica)
  if holder and not own and not preemption then
    -- A lease that was copied from a server whose clock was ahead would expire too late.
    if redis.call('PTTL', prefix .. LEASE) > ttl then
      redis.call('PEXPIRE', prefix .. LEASE, ttl)
    end
    return 0
  end
  if not in_sync and just_flushed(keys[1], now, ttl) then
    return 0
  end
  if not in_sync and not preemption and redis.call('ZCOUNT', prefix .. IN_SYNC, '(' .. now, '+inf') > 0 then
    if own then
      end_lease(keys[1], prefix)
      redis.call('SPUBLISH', prefix .. RECORDED .. run_part, '~')
    end
    return 0
  end
  if not in_sync and not preemption and later then
    if own then
      end_lease(keys[1], prefix)
    end
    return 0
  end
  redis.call('SET', prefix .. LEASE, token, 'PX', ttl)
  redis.call('HSET', keys[1], 'holder', token)
  local fence = '#' .. token
  if not in_sync then
    fence = fence .. (appends[keys[1]] or 0) .. (carried[keys[1]] and '>' or '')
    carried[keys[1]] = nil
  end
  redis.call('SPUBLISH', prefix .. RECORDED .. run_part, fence)
  local raw_run = redis.call('HGET', keys[1], 'raw')
  -- While this node of a cluster had no recorder, raw messages may have been published at others.
  local was_elsewhere = in_cluster and raw_run and raw_run ~= this_run
  local interrupted = not in_sync and (recording[keys[1]] or was_elsewhere)
  recording[keys[1]] = true
  local since = interrupted_at[keys[1]]
  interrupted_at[keys[1]] = not in_sync and (interrupted and now or since) or nil
  if not interrupted or (preemption and since and now - since < RESUMED) then
    return 1
  end
  if was_elsewhere or raw_run == this_run then
    tick(load(keys), '0-0', true)
  end
  if was_elsewhere then
    redis.call('HDEL', keys[1], 'raw')
  end
  return 2
end

-- milliseconds since the newest of the messages was received, 1 if an in-sync recorder would have received the same
-- ones, 2 if the recorder that carried the partition here would have
--
-- A replica will not record raw messages that it has received. Either the server process that sent them is gone or has
-- been replaced, or the lease was lost before, or the partition has moved to another node. If another recorder records
-- them, or the horizon has moved since, nothing happens. Otherwise the horizon moves now, and clients receive a gap.
-- Answers 1 if it moves, and 2 if it is not known yet whether the other recorder is there.
local function forsake(keys, args)
  local refused = not_ready(keys)
  if refused then
    return refused
  end
  local state = load(keys)
  local age, shared = tonumber(args[1]), args[2] == '1' or (args[2] == '2' and carried[keys[1]])
  local since = lost_at[keys[1]]
  -- The command that migrates the partition has received them, too.
  if is_closed(state) then
    return 0
  end
  if shared and redis.call('ZCOUNT', state.prefix .. IN_SYNC, '(' .. state.now, '+inf') > 0 then
    return 0
  end
  if since and since <= state.now and since > state.now - age then
    return 0
  end
  if args[2] == '2' and shared and redis.call('EXISTS', state.prefix .. LEASE) == 1 then
    return 2
  end
  tick(state, '0-0', true)
  return 1
end

-- Removes a replica's in-sync mark. Releases the lease if it was acquired under this token, or, without a token, by
-- this replica. If the replica stops for good, calls that it sent before and that arrive later do not make it in sync
-- again.
local function give_back(keys, replica, token, for_good)
  local prefix = string.sub(keys[1], 1, -1 - #CLOCK)
  redis.call('ZREM', prefix .. IN_SYNC, replica)
  local own = listeners[keys[1]] and listeners[keys[1]][replica]
  if own then
    listeners[keys[1]][replica] = { before = own.subscription or own.before, ends = own.ends }
  end
  if for_good then
    if step_downs >= 10000 then
      stepped_down, step_downs = {}, 0
    end
    stepped_down[keys[1] .. replica], step_downs = true, step_downs + 1
  end
  local holder = redis.call('GET', prefix .. LEASE)
  if holder and (holder == token or (not token and is_of(holder, replica))) then
    end_lease(keys[1], prefix)
    -- Without a handshake no recorder is subscribed.
    if run_part then
      redis.call('SPUBLISH', prefix .. RECORDED .. run_part, '~')
    end
  end
end

-- replica, token, 1 if the replica stops for good, 1 if nothing is interrupted by that: it was the last to be
-- subscribed, ended its subscription itself and recorded all its messages
--
-- A replica is not subscribed any more.
local function release(keys, args)
  if args[4] == '1' then
    recording[keys[1]] = nil
  end
  give_back(keys, args[1], args[2], args[3] == '1')
  return 1
end

-- replica, a notice
--
-- A replica is to stop, and steps down if another replica is in sync, which has the same messages pending. Its in-sync
-- mark is removed and its lease released. Answers 1 then and publishes the notice, 0 when no other replica is in sync
-- yet, 2 when there is no other replica at all.
local function step_down(keys, args)
  if not run_part then
    return not_ready(keys)
  end
  local replica, notice = args[1], args[2]
  local prefix = string.sub(keys[1], 1, -1 - #CLOCK)
  local own = redis.call('ZSCORE', prefix .. IN_SYNC, replica)
  local now = now_ms()
  local in_sync = redis.call('ZCOUNT', prefix .. IN_SYNC, '(' .. now, '+inf')
  -- A partition that has moved to another Redis needs no recorder.
  if not is_closed(load(keys)) and in_sync == ((own and tonumber(own) > now) and 1 or 0) then
    -- Every replica subscribes to the first, and this one also to the other, until its last stream has ended.
    local all = redis.call('PUBSUB', 'NUMSUB', REVOKE)[2]
    return all > redis.call('PUBSUB', 'SHARDNUMSUB', prefix .. ANSWERS .. run_part .. replica)[2] and 0 or 2
  end
  give_back(keys, replica, nil, true)
  redis.call('SPUBLISH', prefix .. RECORDED .. run_part, notice)
  return 1
end

-- replica, token, milliseconds
local function renew(keys, args)
  if not run_part then
    return not_ready(keys)
  end
  local replica, token, ttl = args[1], args[2], tonumber(args[3])
  if stepped_down[keys[1] .. replica] then
    return 0
  end
  local prefix = string.sub(keys[1], 1, -1 - #CLOCK)
  -- A call that arrives late may belong to a subscription that was cut since.
  if redis.call('GET', prefix .. LEASE) ~= token then
    return 0
  end
  note_in_sync(prefix, replica, ttl * IN_SYNC_LEASES)
  redis.call('PEXPIRE', prefix .. LEASE, ttl)
  announce_again(prefix, now_ms())
  return 1
end

-- replica, recorders, milliseconds, 1 if the caller is a candidate; 0 milliseconds release the candidacy. Answers 0
-- without a candidacy, 1 with one, 2 with one too many.
--
-- A candidate keeps its candidacy, even if it expired while Redis stalled. No other recorder may have the messages that
-- were published in that time.
local function candidacy(keys, args)
  local replica, recorders, ttl, has = args[1], tonumber(args[2]), tonumber(args[3]), args[4] == '1'
  local key = string.sub(keys[1], 1, -1 - #CLOCK) .. CANDIDATES
  local now = now_ms()
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  if ttl > 0 then
    forget_future(key, now + ttl)
  end
  local others = redis.call('ZCARD', key) - (redis.call('ZSCORE', key, replica) and 1 or 0)
  if ttl == 0 or (others >= recorders and not has) then
    redis.call('ZREM', key, replica)
    return 0
  end
  redis.call('ZADD', key, now + ttl, replica)
  redis.call('PEXPIRE', key, ttl * 2)
  return others >= recorders and 2 or 1
end
