libmirror_la_SOURCES += \
	mirror/job/apply-policy.c \
	mirror/job/attach.c \
	mirror/job/check.c \
	mirror/job/check.h \
	mirror/job/converge.c \
	mirror/job/converge.h \
	mirror/job/copy.c \
	mirror/job/copy.h \
	mirror/job/dry-run.c \
	mirror/job/estimate.c \
	mirror/job/estimate.h \
	mirror/job/final.c \
	mirror/job/forecast.c \
	mirror/job/forecast.h \
	mirror/job/gate-control.c \
	mirror/job/gate-control.h \
	mirror/job/internal.h \
	mirror/job/job.c \
	mirror/job/job.h \
	mirror/job/read-test.c \
	mirror/job/read-test.h \
	mirror/job/requests.c \
	mirror/job/status.c \
	mirror/job/verify.c \
	mirror/job/verify.h \
	mirror/job/worker-lock.c \
	mirror/job/worker-lock.h
