"""Messages in Redis or Valkey: `redis://host`, on one server."""

from taskline.transports.redis.transport import RedisTransport as RedisTransport
