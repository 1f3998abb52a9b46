"""Schedules: tasks that are sent again and again, or once at a time, by the workers themselves."""

from taskline.schedule.declare import declare as declare
from taskline.schedule.entry import Schedule as Schedule
from taskline.schedule.scheduler import Scheduler as Scheduler
from taskline.schedule.schedules import ScheduleInfo as ScheduleInfo
from taskline.schedule.schedules import Schedules as Schedules
