-- This step has to be taken where there is no room too, or nobody could make any. A script whose first write takes no room (this
-- one does nothing) is not refused the others.
redis.call('PERSIST', K[3])
