from taskline.transports.mongodb.transport import MongoTransport

__all__ = ["MongoTransport"]
