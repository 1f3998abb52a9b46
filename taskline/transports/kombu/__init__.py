"""Any of kombu's transports as a Taskline transport: `kombu+amqp://`, `kombu+sqs://`, …."""

from taskline.transports.kombu.transport import KombuTransport as KombuTransport
