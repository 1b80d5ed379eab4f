<?php
// Publishes to these channels in turn, until there is a file "stop".
require 'publish.php';

function one(string $channel, int $number): void
{
    echo "$channel $number ", publish($channel, "php $number", "php $number"), "\n";
    usleep(10_000);
}

$channels = array_slice($argv, 1);
for ($number = 0; !file_exists('stop'); $number++) {
    clearstatcache();
    foreach ($channels as $channel) {
        one($channel, $number);
    }
}
one($channels[0], $number - 1);
