-- This step must run without memory too, or no client could free any. Redis allows the writes of a script whose first write
-- needs no memory (this one changes nothing).
redis.call('PERSIST', K[3])
