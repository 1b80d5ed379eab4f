#!/bin/sh
# Makes these nodes a Redis Cluster, and keeps them one: cluster.sh NODE...
#
# The first half of the nodes begin as masters with an even share of the slots, and each of the others as the copy of one
# of them. Each step is taken only if it is missing. So this may be interrupted, and run again on a cluster that has data.
set -u

half=$(($# / 2))

# ask NODE COMMAND...: the answer of a node. It fails if there is none.
ask() {
    node=$1
    shift
    timeout 2 redis-cli -h "$node" "$@"
}

# introduce NODE...: each node knows the present address of each one. A node that knows another one by a former address
# corrects it when it meets the other one, which learns its own address then.
introduce() {
    for one; do
        known=$(ask "$one" CLUSTER NODES) || continue
        for other; do
            address=$(getent hosts "$other") || continue
            address=${address%% *}
            case $known in *" $address:6379@16379,$other"[,\ ]*) continue ;; esac
            from=$one
            if [ "$from" = "$other" ]; then from=$1; fi
            if [ "$from" = "$other" ]; then from=$2; fi
            echo "$from meets $other at $address: $(ask "$from" CLUSTER MEET "$address" 6379)"
        done
    done
}

# is_new NODE...: whether all nodes answer, and none of them knows an owner of all slots.
is_new() {
    for one; do
        info=$(ask "$one" CLUSTER INFO) || return 1
        case $info in
        "" | *cluster_slots_assigned:16384*) return 1 ;;
        esac
    done
}

# share NODE...: the masters of a new cluster own the slots.
share() {
    number=0
    for one; do
        [ "$number" -lt "$half" ] || return 0
        first=$((16384 * number / half)) last=$((16384 * (number + 1) / half - 1))
        number=$((number + 1))
        case $(ask "$one" CLUSTER NODES | grep myself) in
        *" $first-$last"*) ;;
        *) echo "$one owns slots $first to $last: $(ask "$one" CLUSTER ADDSLOTSRANGE "$first" "$last")" ;;
        esac
    done
}

# pair NODE...: a master without slots is the copy of its partner, once the cluster is complete.
pair() {
    number=0
    for one; do
        number=$((number + 1))
        ask "$one" CLUSTER INFO | grep -q cluster_slots_assigned:16384 || continue
        ask "$one" CLUSTER NODES | grep 'myself,master .* connected$' >/dev/null || continue
        partner=
        eval "partner=\${$((number > half ? number - half : number + half))}"
        id=$(ask "$partner" CLUSTER MYID) && echo "$one copies $partner: $(ask "$one" CLUSTER REPLICATE "$id")"
    done
}

while :; do
    introduce "$@"
    if is_new "$@"; then share "$@"; fi
    pair "$@"
    sleep 1
done
