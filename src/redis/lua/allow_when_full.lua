-- Allows the step to write when `maxmemory` is reached, since acknowledgements free memory. Redis allows all writes of a
-- script whose first write needs no memory. `PERSIST` changes nothing.
redis.call('PERSIST', K[3])
